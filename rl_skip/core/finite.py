"""Numbers that are not finite, NaN and infinity, are found by name before they are learned from, written or run."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from rl_skip.core.errors import UserError
from rl_skip.core.processes import together

__all__ = ["NotFinite", "found_in", "not_finite", "refuse_not_finite", "row_not_finite"]


class NotFinite(UserError):
    """A number is not finite where training or measuring cannot go on with it. Command lines end with exit code 1."""

    exit_code = 1


def not_finite(named: Iterable[tuple[str, Tensor]], *, masks: bool = False) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None where all are. Whole numbers, and bytes of any kind, always are.

    Of tensors that are split over several processes each looks at its part; then all call it together, and get the same.

    Args:
        masks: minus infinity may be among them, of which masks are made.
    """
    tensors = [(name, tensor.detach()) for name, tensor in named if _fractional(tensor) and tensor.numel()]
    if not tensors:
        return None
    held = [_own(tensor) for _, tensor in tensors]  # of NaN both ends are NaN, and nothing as large as the tensor is made
    ends = [torch.stack(own.aminmax()) if own.numel() else own.new_zeros(2) for own in held]
    low, high = torch.stack([pair.cpu().double() for pair in ends]).unbind(dim=1)
    fine = high.isfinite() & low.isfinite() if not masks else high < torch.inf
    if any(own is not tensor for own, (_, tensor) in zip(held, tensors, strict=True)):
        wrong = (~fine).int()
        together().add(wrong)
        fine = wrong == 0
    return None if fine.all() else tensors[int(fine.long().argmin())][0]


def found_in(module: nn.Module) -> str | None:
    """The first weight of a module that is not finite, or the first buffer, which may be a mask."""
    return not_finite(module.named_parameters()) or not_finite(module.named_buffers(), masks=True)


def refuse_not_finite(module: nn.Module, source: Path | str, advice: str) -> None:
    """Raises `NotFinite`, naming the weight, if a module has one that is not finite.

    Args:
        source: where the weights are from or go to.
        advice: what to do, for the message.
    """
    if (name := found_in(module)) is not None:
        raise NotFinite(f"{source}: the weight {name} holds numbers that are not finite; {advice}")


def row_not_finite(rows: Tensor) -> int | None:
    """The number of the first row (N, ...) that holds a number that is not finite; None where there is none."""
    if not_finite([("", rows)]) is None:
        return None
    return int((~rows.isfinite()).reshape(len(rows), -1).any(dim=1).nonzero()[0])


def _own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself where it is not split."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own


def _fractional(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize > 1 and tensor.device.type != "meta"
