"""What stands in the place of a module's `forward` while a policy is attached, and goes with the module into copies and pickles."""

from functools import update_wrapper
from types import MethodType
from typing import Any, Protocol

from torch import nn

from rl_skip.core.errors import UserError

__all__ = ["Attached", "StandIn", "install", "remove"]


class Attached(Protocol):
    """Whose stand-ins they are: the handle of an attached policy."""

    stack: Any

    @property
    def routing(self) -> bool:
        """Whether calls of the model are routed now."""
        ...

    def check_standing(self) -> None:
        """Refuses a model of which a module was replaced."""
        ...

    def call_layer(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs a layer on the rows that come to it."""
        ...


class StandIn:
    """Stands in for the `forward` of a module of an attached model.

    Args:
        handle: of the attached policy.
        module: the module.
        name: what messages call it.
    """

    def __init__(self, handle: Attached, module: nn.Module, name: str) -> None:
        self.handle, self.module, self.name = handle, module, name
        self.original, self.was_own = module.forward, "forward" in vars(module)
        update_wrapper(self, self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    def __getstate__(self) -> dict[str, Any]:
        """Without the module's own method, which a pickle would look up by its name, and so find this object instead."""
        return {name: value for name, value in vars(self).items() if name != "__wrapped__" and (self.was_own or name != "original")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self.was_own:
            self.original = MethodType(type(self.module).forward, self.module)
        self.__wrapped__ = self.original

    @property
    def __code__(self) -> Any:
        """That of what it stands in for, which `torch.export` asks for the names of its arguments."""
        return self.original.__code__

    def refuse_script(self) -> None:
        """Called by `torch.jit.script`, which would read the source of the module and not see what stands in for it.

        Raises:
            UserError: always.
        """
        raise UserError(f"torch.jit.script reads the source of {self.name}, where no route stands: torch.jit.trace it, or detach() first")

    @property
    def stands(self) -> bool:
        """Whether it is still the module's `forward`."""
        return vars(self.module).get("forward") is self


def install(stand_ins: list[StandIn]) -> None:
    """Puts each in its place."""
    for one in stand_ins:
        one.module.forward = one
        one.module.__prepare_scriptable__ = one.refuse_script  # type: ignore[assignment]


def remove(stand_ins: list[StandIn]) -> None:
    """Gives the modules their own `forward` back.

    Raises:
        UserError: if one was replaced since; then all stay.
    """
    for one in stand_ins:
        if not one.stands:
            raise UserError(f"the forward of {one.name} was replaced after the policy was attached: undo that first, then detach")
    for one in stand_ins:
        del one.module.forward, one.module.__prepare_scriptable__
        if one.was_own:
            one.module.forward = one.original
