"""`rl_skip.attach`: a jump policy on any model, which stays the same object."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rl_skip.attached.answering import HEAD_BESIDE
from rl_skip.attached.finding import UNROUTABLE, configured, find_layers, fits, layers_config, uncompiled, width_of
from rl_skip.attached.flops import transformer_flops
from rl_skip.attached.handle import Handle
from rl_skip.attached.identity import WEIGHTS, check_identity, saved_identity
from rl_skip.attached.learning import LearningHandle
from rl_skip.attached.returns import Form, check_form, form_of, returned_parts, unknown_parts
from rl_skip.attached.routed_calls import RoutedForward
from rl_skip.attached.skip_config import SkipConfig
from rl_skip.attached.tail import Tail
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature
from rl_skip.core.finite import refuse_not_finite
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.core.readouts import Readouts, adapter_of
from rl_skip.core.seal import check_sealed
from rl_skip.export.description import Description
from rl_skip.export.policy_folder import DESCRIPTION, LOADED, READOUTS, load_policy, read_description
from rl_skip.export.weights import read_weights

__all__ = ["attach", "check_fit", "check_layers"]

CHANNEL_DIMS = {"VitDetLayer": 1}
"""Layers of transformers whose channels do not come last."""


def attach(
    model: nn.Module,
    policy: SkipConfig | JumpPolicy | JumpRules | Path | str | None = None,
    layers: str = "auto",
    *,
    channel_dim: int | None = None,
    prompt_tokens: int | None = None,
    returns: Sequence[str | None] | None = None,
    features: Sequence[Feature] = (),
    readouts: Readouts | None = None,
    example: Inputs | None = None,
) -> Handle:
    """Lets every row of a batch skip layers of `model`, in place: its calls, `generate`, weights' names and class stay as they were.

    With readouts, a row that leaves early is answered by the one of its depth: `logits` are its own, and so is what the model makes of them, the loss
    and the next token. Of `hidden_states`, those of layers that a row did not run repeat its state, and the last holds what an adapter made of it.

    Args:
        model: a model from transformers, or any module whose layers sit in a `ModuleList` or `Sequential` and map a
            tensor, rows first, to one of the same shape.
        policy: a `SkipConfig`, for a fresh policy that learns in your own training loop, with a `LearningHandle`; a policy, a folder that
            `Handle.save_pretrained` wrote, or rules for a policy that does nothing yet. None: all layers run but within `handle.forced(route)`.
        layers: the path of the layers in the model, such as "encoder.blocks"; "auto" finds those of transformers.
        channel_dim: where the D channels of the hidden state are; 1 for images (B, D, H, W). None: as saved, or as is known of the layers, or last.
        prompt_tokens: how many real tokens, from the first, a decision may look at. None: as saved, or all that are there
            when the route is chosen; while generating with a cache, that is the prompt. Name it where the first call holds
            less or more than the prompt (a prefill in chunks, prompt lookup, an assistant), or where there is no cache.
        returns: for layers of one's own that return a tuple, what each part is: "hidden" for the hidden state; the name of the argument of the
            layers after it that a part becomes, of which rows that skip a layer keep what they had; None for what the model only collects, such as
            attention weights, of which rows that skip a layer get zeros. None: as saved, or as is known of layers of transformers.
        features: those of one's own that a saved policy sees; registered ones need not be named.
        readouts: what answers rows that leave early, of a `HuggingFaceStack`; a saved policy brings its own along.
        example: with a `SkipConfig`: a batch of the model's arguments without labels, or one tensor, to try the model on and to count the cost of
            a readout. None: one is made up, for models from transformers of text, images or waveforms.

    Raises:
        UserError: if the layers are not found, were attached before, or do not fit the policy.

    Example:
        >>> import torch
        >>> from rl_skip import attach
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))), nn.Linear(8, 2))
        >>> handle = attach(model, layers="1")
        >>> with handle.forced(torch.tensor([True, False, False, True])):
        ...     model(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> handle.last_routes[0].int().tolist()
        [1, 0, 0, 1]
        >>> handle.detach()
    """
    model = uncompiled(model)
    saved = _Saved.read(policy, features) if isinstance(policy, Path | str) else None
    identity = {} if saved is None else saved.identity
    if isinstance(policy, Path | str):
        policy = load_policy(policy, features)
    elif isinstance(policy, JumpRules):
        policy = JumpPolicy(policy).eval()
    if policy is not None and not isinstance(policy, JumpPolicy | SkipConfig):
        raise UserError(f"a policy is a folder, a JumpPolicy, a SkipConfig, JumpRules, or None, got {type(policy).__name__}")
    path, routed, standard = _find(model, layers, identity.get("layers"))
    returns = identity.get("returns") if returns is None else returns
    form = None if returns is None else check_form(returns)
    check_layers(path, routed, form)
    width = width_of(model, path) if standard else None
    flops = None if width is None else transformer_flops(layers_config(model, path), routed, width)
    if channel_dim is None:
        channel_dim = identity.get("channel_dim", CHANNEL_DIMS.get(type(routed[0]).__name__, -1))
    if isinstance(policy, SkipConfig):
        if readouts is not None or len(features) > 0:
            raise UserError("a fresh policy makes its own readouts, and SkipConfig(features=…) says what it sees: leave readouts= and features= out")
        known: dict[str, Any] = {"width": width, "flops": flops, "channel_dim": channel_dim, "prompt_tokens": prompt_tokens, "form": form}
        return LearningHandle(model, routed, path, config=policy, example=example, prefix=_base_prefix(model), **known)
    if policy is not None:
        check_fit(policy.rules, len(routed), width, path)
        width = policy.rules.layout.width
    within = identity.get("layers", path)
    prefix = path.removesuffix(within) if path.endswith(within) else ""  # of what was put around the model, such as peft's adapters
    if saved is not None:
        check_identity(saved.description, model, path, None if flops is None else flops.shares(), saved.file)
        readouts = readouts if saved.description.readouts is None else saved.readouts(model.get_submodule(prefix.rstrip(".")))
        check_sealed(saved.file.parent, *LOADED, whole=True)
    _check_readouts(policy, readouts)
    return Handle(
        model,
        routed,
        path,
        width=width,
        flops=flops,
        policy=policy,
        channel_dim=channel_dim,
        prompt_tokens=identity.get("prompt_tokens") if prompt_tokens is None else prompt_tokens,
        form=form,
        readouts=readouts,
        prefix=prefix,
        learned_with=identity.get(WEIGHTS),
        **({} if saved is None else saved.settings),
    )


@dataclass(frozen=True)
class _Saved:
    """What the folder of a saved policy says."""

    description: Description
    file: Path
    """In which it says so."""
    identity: dict[str, Any]
    """Of the model that the policy was trained on."""

    @classmethod
    def read(cls, folder: Path | str, features: Sequence[Feature]) -> "_Saved":
        """What stands in `folder`."""
        description, file = read_description(folder, features), Path(folder, DESCRIPTION)
        return cls(description, file, saved_identity(description, file))

    @property
    def settings(self) -> dict[str, Any]:
        """What a handle takes over as it was saved."""
        return {name: getattr(self.description, name) for name in ("price", "table", "trained_on", "reward", "costs", "tuned")}

    def readouts(self, model: nn.Module) -> Readouts:
        """Those in the folder; `model` is what they were trained with."""
        plan, layout = self.description.readouts or {}, self.description.rules.layout
        first = Tail(model, plan["modules"]) if "modules" in plan else adapter_of(layout.width, plan) if "rank" in plan else None
        if first is None:
            raise UserError(HEAD_BESIDE)
        readouts, weights = Readouts(first, layout.depth, plan, layout.readout_flops), self.file.parent / READOUTS
        readouts.load_state_dict(read_weights(weights, readouts.state_dict()))
        refuse_not_finite(readouts, weights, "train the policy anew with train.py")
        return readouts


def _base_prefix(model: nn.Module) -> str:
    """Where in a model with adapters around it the model itself is; it ends with a dot, or is empty."""
    inside = getattr(model, "get_base_model", None)  # of peft
    base = inside() if callable(inside) else model
    return next((f"{name}." for name, module in model.named_modules() if module is base and name), "")


def _check_readouts(policy: JumpPolicy | None, readouts: Readouts | None) -> None:
    """Refuses a policy that knows of readouts without them, and readouts without a policy that knows of them."""
    known = 0.0 if policy is None else policy.rules.layout.readout_flops
    if known and readouts is None:
        raise UserError("the policy was trained with readouts, which are not here: attach(model, policy, readouts=stack.readouts), or its folder")
    if policy is not None and readouts is not None and known != readouts.flops:
        raise UserError(f"the policy knows of readouts of {known:g} operations, these have {readouts.flops:g}; take those that were trained with it")


def _find(model: nn.Module, layers: str, saved: str | None) -> tuple[str, Sequence[nn.Module], bool]:
    """The layers, those at `saved` where "auto" finds none, and whether their width and costs are as the configuration has them."""
    try:
        usual = find_layers(model)
    except UserError:
        path = saved if layers == "auto" else layers
        if path is None:
            raise
        path, routed = find_layers(model, path)
        return path, routed, not configured(model, "is_encoder_decoder") and fits(model, path, routed)
    if layers in ("auto", usual[0]):
        return *usual, True
    return *find_layers(model, layers), False


def check_fit(rules: JumpRules, depth: int, width: int | None, path: str) -> None:
    """Refuses a policy for other layers.

    Raises:
        UserError: naming the field, depth or width, that differs.
    """
    for name, expected, actual in (("depth", rules.layout.depth, depth), ("width", rules.layout.width, width)):
        if actual is not None and expected != actual:
            raise UserError(f"the policy's {name} is {expected}, that of {path} is {actual}; the policy goes with the network that it was trained on")


def check_layers(path: str, layers: Sequence[nn.Module], form: Form | None = None) -> None:
    """Refuses layers that cannot be routed.

    Args:
        path: where they are.
        layers: the layers.
        form: what a person said that they return.

    Raises:
        UserError: for layers that are attached already, one module in several places, rows that come second, and tuples of unknown parts.
    """
    if len({id(layer) for layer in layers}) < len(layers):
        raise UserError(f"{path} holds one module more than once, so its layers cannot be told apart: give each layer a module of its own")
    if any(isinstance(vars(layer).get("forward"), RoutedForward) for layer in layers):
        raise UserError(f"{path} is attached already; call detach() on its handle first")
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
            raise UserError(f"the rows of {path} are its second dimension: build the layers with batch_first=True")
        if type(layer).__name__ in UNROUTABLE:
            raise UserError(UNROUTABLE[type(layer).__name__])
        if form is None and form_of(layer) is None and (returned := returned_parts(layer)) is not None:
            raise UserError(unknown_parts(type(layer).__name__, returned))
