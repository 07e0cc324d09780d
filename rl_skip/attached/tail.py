"""What a model does after its layers, for readouts: its modules found and copied, and the modules that lie beside the way to its layers."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.finding import configured
from rl_skip.attached.rows import Places, rows_of
from rl_skip.attached.standing import HOOKS, any_hooked
from rl_skip.core.errors import UserError
from rl_skip.core.means import groups_of
from rl_skip.core.readouts import POOLING_RANK, RANK, too_large

__all__ = [
    "Recorded",
    "Tail",
    "called_after",
    "copied",
    "fresh_weights",
    "head_modules",
    "modules_beside",
    "readout_plan",
    "reads_one_token",
    "recording_calls",
    "shares_weights",
    "speaks",
    "standing_in",
    "taken",
]

Recorded = dict[str, list[Any]]
"""What the modules before layer 0 returned, by name, in the order of their calls."""
LOADED = "_is_hf_initialized"
"""Which attribute transformers gives the weights that it has read from a file."""


class Tail(nn.Module):
    """Copies of the modules that a model calls after its layers, with which it answers rows that leave after one layer.

    Args:
        model: the model.
        names: the modules' paths in it, such as "bert.pooler".

    Raises:
        UserError: if the model has no module of such a path.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict()
        for name in names:
            try:
                copy = _without_adapters(model.get_submodule(name))
            except AttributeError:
                advice = "load the model that they were saved for"
                raise UserError(f"the readouts copy a module {name}, which {type(model).__name__} lacks; {advice}") from None
            copy._forward_hooks.clear()  # those of what it stands in for are called around it
            self.copies[name.replace(".", "/")] = copy

    def by_name(self) -> dict[str, nn.Module]:
        """The copies by the paths of what they are copies of."""
        return {name.replace("/", "."): copy for name, copy in self.copies.items()}


def _without_adapters(module: nn.Module) -> nn.Module:
    """A copy of a module as it would be without peft: adapters are merged into its weights, and what peft trains in its place is it."""
    trained = getattr(module, "modules_to_save", None)
    if trained is not None:
        return deepcopy(trained[module.active_adapters[0]])  # type: ignore[index]
    copy = deepcopy(module)
    if hasattr(copy, "get_base_layer") and hasattr(copy, "merge"):
        copy.merge()  # type: ignore[operator]
        return copy.get_base_layer()  # type: ignore[operator]
    for name, child in copy.named_children():
        setattr(copy, name, _without_adapters(child))
    return copy


def modules_beside(model: nn.Module, path: str) -> dict[str, nn.Module]:
    """The modules that lie beside the way from the model to its layers, such as the embeddings; each once."""
    way = path.split(".")
    beside: dict[str, nn.Module] = {}
    for depth, name in enumerate(way):
        parent = ".".join(way[:depth])
        for child_name, child in model.get_submodule(parent).named_children():
            if child_name != name and not any(child is other for other in beside.values()):
                beside[f"{parent}.{child_name}".lstrip(".")] = child
    return beside


def called_after(call: Callable[[], object], last: nn.Module, beside: dict[str, nn.Module]) -> list[str]:
    """Which of the modules beside the layers `call` runs after the last layer and never before; those without weights are left out."""
    done: list[bool] = []
    before, after = set(), []

    def watch(name: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            if not done:
                before.add(name)
            elif name not in after:
                after.append(name)

        return called

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in beside.items()]
    hooks.append(last.register_forward_hook(lambda *_: done.append(True)))
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in after if name not in before and next(beside[name].parameters(), None) is not None]


def reads_one_token(call: Callable[[], Tensor], last: nn.Module) -> bool:
    """Whether what `call` returns, (B, ...), depends on one token of each row alone after the `last` layer, such as BERT's first."""
    seen: list[Tensor] = []

    def watch(_layer: nn.Module, _args: Any, output: Any) -> Any:
        whole = isinstance(output, tuple)
        hidden = output[0] if whole else output
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[1] < 2:
            return None
        seen.append(hidden.detach().requires_grad_())
        return (seen[-1], *output[1:]) if whole else seen[-1]

    hook = last.register_forward_hook(watch)
    try:
        with torch.enable_grad():
            first = call().flatten(1)[:, 0].sum()
    finally:
        hook.remove()
    if not seen or not first.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(first, seen[-1], allow_unused=True)  # (B, T, D)
    return gradient is not None and int((gradient.abs().amax(dim=-1) > 0).sum(dim=1).max()) == 1


def readout_plan(
    model: nn.Module, names: Sequence[str], depth: int, width: int, fresh: Sequence[str] = (), one_token: bool = False
) -> dict[str, Any]:
    """What readouts suit a model that calls the modules `names` after its layers, whose weights `fresh` have yet to be learned.

    Args:
        depth: L.
        width: D.
        one_token: whether its head reads one token of a row, see `reads_one_token`, which knows little of the others after the first layers.

    Returns:
        Copies of those modules, {"modules": …}. Or adapters before the model's own head: {"rank": …} where there are no such modules, they are
        large, their weights are others' too, or they are a whole decoder; {"rank": …, "pools": True, "groups": …}, which know a mean over the
        tokens that learns where to look, where the head reads one of them, or where the last of the modules is fresh: there is nothing to copy
        yet.
    """
    decodes = configured(model, "is_encoder_decoder")  # what comes after the encoder is the whole decoder
    if names and not decodes and (one_token or any(weight.startswith(f"{names[-1]}.") for weight in fresh)):
        return {"rank": POOLING_RANK, "pools": True, "groups": groups_of(width)}
    if not names or decodes or shares_weights(model, names) or too_large([model.get_submodule(name) for name in names], depth):
        return {"rank": RANK}
    return {"modules": list(names)}


def head_modules(model: nn.Module, beside: dict[str, nn.Module], plan: dict[str, Any], fresh: Sequence[str]) -> list[nn.Module]:
    """What a model from transformers has besides its base, and what of its base is learned like that, such as BERT's pooler; empty where its base
    is not known.

    Args:
        beside: its modules beside the way to its layers.
        plan: of its readouts, which may be copies of such modules.
        fresh: names of the weights that have yet to be learned.
    """
    inside = getattr(model, "base_model_prefix", "")
    heads = [child for name, child in model.named_children() if name != inside]
    if len(heads) == len(list(model.children())):
        return []
    within = {name for name in beside for weight in fresh if f"{weight}.".startswith(f"{name}.")}
    return [*heads, *(beside[name] for name in sorted(within.union(plan.get("modules", []))) if beside[name] not in heads)]


def fresh_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights that `from_pretrained` did not find in a model's file; none of a model that was not loaded so.

    transformers marks what it has loaded, and the mark stays while the weights learn. What peft has added is left out.
    """
    added = {
        id(parameter)
        for module in model.modules()
        if hasattr(module, "base_layer") or hasattr(module, "original_module")
        for name, child in module.named_children()
        if name not in ("base_layer", "original_module")
        for parameter in child.parameters()
    }
    loaded = {name: getattr(weight, LOADED, False) for name, weight in model.named_parameters() if id(weight) not in added}
    return tuple(name for name, known in loaded.items() if not known) if any(loaded.values()) else ()


def shares_weights(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether the named modules have weights that are others' too, such as a language model's head those of the embedding."""
    inside = {id(module) for name in names for module in model.get_submodule(name).modules()}
    weights = {id(weight) for name in names for weight in model.get_submodule(name).parameters()}
    return any(id(weight) in weights for other in model.modules() if id(other) not in inside for weight in other.parameters(recurse=False))


def speaks(model: nn.Module, causal: bool) -> bool:
    """Whether the model says, of each of its tokens alone, what may follow it: a language model whose tokens see no later ones."""
    can_generate = getattr(model, "can_generate", None)
    return causal and can_generate is not None and can_generate() and not configured(model, "is_encoder_decoder")


def taken(recorded: Recorded, rows: Tensor, row_count: int, places: Places) -> Recorded:
    """What was recorded, of the named rows alone."""
    return {name: rows_of(outputs, rows, row_count, name, places) for name, outputs in recorded.items()}


def copied(output: Any) -> Any:
    """The same tensors in memory of their own: a model may write into what its modules return, as wav2vec2 does when it trains."""
    if isinstance(output, Tensor):
        return output.clone()
    return type(output)(copied(item) for item in output) if type(output) in (tuple, list) else output


@contextmanager
def recording_calls(beside: Mapping[str, nn.Module], before: Recorded, reached: Sequence[Tensor]) -> Iterator[None]:
    """Within it, `before` gets what the modules beside the layers return until a layer is `reached`, as it is before hooks of others change it: where
    it is replayed they do so again."""

    def keep(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if not reached:
            before.setdefault(name, []).append(output)

    hooks = [module.register_forward_hook(partial(keep, name), prepend=True) for name, module in beside.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def standing_in(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]], hooks: bool = True) -> Iterator[None]:
    """Within it, each module runs the forward given for it.

    Args:
        modules: the modules.
        forwards: for each what it runs.
        hooks: whether its hooks are called around that as around its own forward.
    """
    own = [vars(module).get("forward") for module in modules]
    unhooked = [] if hooks else [(module, {name: vars(module)[name] for name in HOOKS}) for module in modules if any_hooked((module,))]
    try:
        for module, _ in unhooked:
            vars(module).update({name: OrderedDict() for name in HOOKS})
        for module, forward in zip(modules, forwards, strict=True):
            vars(module)["forward"] = forward
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before
        for module, kept in unhooked:
            vars(module).update(kept)
