"""Whether a model still is what a policy was attached to, and why a cache of its calls has no route."""

from collections.abc import Hashable, Iterable
from typing import Any

from torch import Tensor, nn

from rl_skip.attached.called import CalledStack
from rl_skip.attached.finding import depth_of
from rl_skip.attached.stand_in import StandIn
from rl_skip.core.errors import UserError

__all__ = [
    "HOOKS",
    "Way",
    "any_hooked",
    "check_called",
    "check_depth",
    "check_device",
    "check_layers_stand",
    "check_width",
    "hooks_of",
    "why_no_route",
]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module of PyTorch keeps what is called with it."""


class Way:
    """The way from a model to its layers: the modules on it, and what each of them held when they were looked at.

    Args:
        model: the model.
        path: where in it the layers are.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        names = path.split(".")
        self.modules = [model.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1)]
        """The model first, the list of the layers last."""
        self._held = [dict(module._modules) for module in self.modules]

    @property
    def stands(self) -> bool:
        """Whether each holds the very modules that it held, so that layers, embeddings and heads are those that they were."""
        return all(module._modules == held for module, held in zip(self.modules, self._held, strict=True))  # a module equals itself alone

    @property
    def watched(self) -> bool:
        """Whether somebody awaits the call of a module on the way, by a hook or in the place of its `forward`, and may change what it returns."""
        return any_hooked(self.modules) or any("forward" in vars(module) for module in self.modules)


def any_hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether a call of one of the modules calls hooks too, forward or backward."""
    return any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks for one in modules)


def hooks_of(modules: Iterable[nn.Module]) -> tuple[Hashable, ...]:
    """What is called with the modules, and in the place of their `forward`."""
    return tuple(one for module in modules for one in (*module._forward_hooks, *module._forward_pre_hooks, vars(module).get("forward")))


def check_layers_stand(model: nn.Module, path: str, stack: CalledStack) -> Way | None:
    """Refuses a model that no longer has the layers that the policy was attached to. Returns the way to them; None where it is not known.

    Args:
        model: the model.
        path: where in it the layers are.
        stack: of the layers that the policy was attached to.
    """
    try:
        now = list(model.get_submodule(path).children())
    except AttributeError:  # somebody put something around a part of the model
        return None
    L, attach_again = stack.depth, "detach() first, change the layers, then attach a policy for those that are left"
    if len(now) != L:
        raise UserError(f"{path} has {len(now)} layers, and had {L} when the policy was attached: {attach_again}")
    for i, (one, routed) in enumerate(zip(now, stack.routed, strict=True)):
        if one is not routed and all(module is not routed for module in one.modules()):  # it may have been wrapped
            raise UserError(f"layer {i} of {path} was replaced after the policy was attached: {attach_again}")
    return Way(model, path)


def check_called(passed_over: Iterable[StandIn]) -> None:
    """Refuses layers that the model was thought to leave out, and which ran for all rows as another `forward` has it."""
    for one in passed_over:
        if not one.stands:
            raise UserError(f"the forward of {one.name} was replaced after the policy was attached, and no longer asks it: undo that")


def check_depth(model: nn.Module, path: str, stack: CalledStack, configured_depth: int | None) -> None:
    """Refuses a model that ends before its last layer by itself.

    Args:
        model: the model.
        path: where in it the layers are.
        stack: of the layers that the policy was attached to.
        configured_depth: after how many layers the model's configuration let it end then; None: it did not say.
    """
    depth = depth_of(model, path)
    if depth is not None and configured_depth is not None and depth < configured_depth:
        raise UserError(
            f"the model ends after {depth} of its {stack.depth} layers by itself (num_hidden_layers of its configuration, which assistant_early_exit "
            "sets), and the policy decides about all of them: generate without an early exit, or within handle.disabled()"
        )


def check_width(path: str, stack: CalledStack, hidden: Tensor) -> None:
    """Refuses a hidden state of another width; a stack that knows none yet learns it."""
    width = hidden.shape[stack.channel_dim]
    stack.width = stack.width or width
    if width != stack.width:
        raise UserError(f"the policy is for a hidden state of width {stack.width}, that of {path} has {width}; name other layers")


def check_device(path: str, first: StandIn, hidden: Tensor) -> None:
    """Refuses a copy of the `first` layer that `nn.DataParallel` made: it would run the layer that it was copied from."""
    weight = next(first.module.parameters(), None)
    if weight is not None and weight.device != hidden.device and not first.was_own:  # as accelerate's hooks are, which move rows
        raise UserError(
            f"the layers of {path} are on {weight.device} and were called on {hidden.device}: use one process for each device, "
            "the copies of nn.DataParallel do not take a policy along"
        )


def why_no_route(model: nn.Module, depth: int, broken_off: int | None) -> str:
    """How a cache that has no route was filled.

    Args:
        model: whose cache it is.
        depth: L.
        broken_off: the layer after which the last call ended too early; None: it did not.
    """
    if broken_off is not None:
        return (
            f"the last call of the model ended after layer {broken_off} of {depth}, by an error or an exit of its own, "
            "and left its cache without a route: begin with an empty cache, and let calls run to the last layer"
        )
    adapters: Any = getattr(model, "peft_config", {})
    if any("PREFIX_TUNING" in str(getattr(config, "peft_type", "")) for config in (adapters.values() if isinstance(adapters, dict) else ())):
        return "prefix tuning fills the cache before the first layer, so its rows have no route: train another kind of adapter, such as LoRA"
    return (
        "the cache was filled while no policy was attached, or by an adapter such as prefix tuning, so its rows have no route: begin with an "
        "empty cache, and take an adapter that leaves it alone, such as LoRA"
    )
