"""Fresh readouts of a model that is to be trained: what it is tried on, what it calls after its layers, and what a readout costs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.examples import call, logits_of
from rl_skip.attached.tail import Tail, called_after, fresh_weights, modules_beside, readout_plan, reads_one_token, speaks
from rl_skip.core.batches import deployed
from rl_skip.core.costs import counting
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.readouts import Readouts, adapter_of
from rl_skip.core.routing import Decision, Router, RoutingState

__all__ = ["CountsReadout", "after_layers", "check_model", "fresh_after", "new_readouts", "tried"]


class CountsReadout(Router):
    """All rows run all layers; counts the operations of a readout once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        readouts = state.stack.readouts
        assert readouts is not None
        if i == 0:
            with counting(self.model):
                readouts.count(lambda readout: state.stack.look(readout, state.carry, None), len(rows))
        return Decision(torch.full_like(rows, i + 1))


def check_model(model: nn.Module, layer: nn.Module) -> None:
    """Refuses models that a fresh policy cannot be trained on."""
    name = type(model).__name__
    causal = any(getattr(module, "is_causal", False) for module in layer.modules())
    if speaks(model, causal):
        raise UserError(
            f"{name} says what follows each token, and SkipConfig trains models that answer each row once, such as …ForSequenceClassification: "
            "train it with train.py --task language, then attach(model, RUN/policy)"
        )
    if isinstance(model, nn.Sequential | nn.ModuleList):
        raise UserError(f"a {name} would run the policy as one of its parts: put it into a module of your own with a forward, and attach to that")


@contextmanager
def tried(model: nn.Module, example: Inputs | None) -> Iterator[None]:
    """Within it the model is called for the first time: what goes wrong is said in a line."""
    with deployed(model):
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # other people's code
            which = "the example" if example is not None else "a batch that was made up"
            reason = " ".join(str(error).split())[:200]
            advice = "attach(model, SkipConfig(…), example=batch)"
            failed = f"{type(model).__name__} cannot be called on {which} ({type(error).__name__}: {reason})"
            raise UserError(f"{failed}; give a batch of yours: {advice}") from None


def after_layers(model: nn.Module, layers: Sequence[nn.Module], path: str, batch: Inputs) -> tuple[list[str], torch.Size, bool]:
    """Which modules the model calls after its layers; the shape of the hidden state; and whether what it answers depends on one token of it alone."""
    shapes: list[torch.Size] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else next(iter(kwargs.values()))
        shapes.append(hidden.shape)

    hook = layers[0].register_forward_pre_hook(watch, with_kwargs=True)
    try:
        names = called_after(lambda: logits_of(call(model, batch), model), layers[-1], modules_beside(model, path))
        one_token = reads_one_token(lambda: logits_of(call(model, batch), model), layers[-1])
    finally:
        hook.remove()
    if not shapes:
        raise UserError(f"{type(model).__name__} does not call the layers at {path}; name those that it does, layers=")
    return names, shapes[0], one_token


def fresh_after(model: nn.Module, names: Sequence[str], fresh_head: bool | None) -> tuple[str, ...]:
    """Names of those weights of the modules `names`, which come after the layers, that have yet to be learned.

    Args:
        fresh_head: whether the last of those modules is one of them; None: as `from_pretrained` left them.
    """
    of_head = tuple(f"{names[-1]}.{name}" for name, _ in model.get_submodule(names[-1]).named_parameters()) if names else ()
    if fresh_head is not None:
        return of_head if fresh_head else ()
    return tuple(weight for weight in fresh_weights(model) if weight.startswith(tuple(f"{name}." for name in names)))


def new_readouts(
    model: nn.Module, names: Sequence[str], depth: int, width: int, rank: int | None, fresh: Sequence[str], one_token: bool, channel_dim: int
) -> Readouts:
    """A readout after each layer but the last, each begun as the model's own head, their operations not counted yet.

    Args:
        model: without what was put around it.
        names: the modules that it calls after its L = `depth` layers.
        width: D.
        rank: of adapters; None: copies of those modules, or the adapters that suit it.
        fresh: weights of those modules that have yet to be learned.
        one_token: whether they read one token of each row alone.
        channel_dim: where the D channels of the hidden state are.
    """
    plan: dict[str, Any] = readout_plan(model, names, depth, width, fresh, one_token) if rank is None else {"rank": rank}
    first = Tail(model, plan["modules"]) if "modules" in plan else adapter_of(width, plan, channel_dim)
    device = next(model.parameters()).device
    return Readouts(first.to(device), depth, plan)
