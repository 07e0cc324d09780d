"""What each process takes of a batch, in one pass or several, and how gradients and metrics of all are added up in one message."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.run.split_tensors import is_split
from rl_skip.core.processes import together
from rl_skip.core.task import Examples

__all__ = ["Part", "PartLoss", "add_up", "parts"]


@dataclass(frozen=True)
class Part:
    """What one process takes of an update's batch in one pass: b of its B rows."""

    rows: Tensor
    """(b,) long, which training rows."""
    batch: Examples
    place: slice
    """Where in the batch."""
    weight: float
    """b / B: a mean over the part, times this, adds up to the mean over the batch."""

    def of(self, whole: Tensor) -> Tensor:
        """(b, ...), this part of what was drawn for the whole batch, (B, ...), on the device of the rows."""
        return whole[self.place].to(self.rows.device)


PartLoss = Callable[[Part], tuple[Tensor, dict[str, Tensor]]]
"""A part → the mean loss over its rows, a scalar, and metrics, each a mean over its rows."""


def parts(train: Examples, rows: Tensor, passes: int) -> Iterator[Part]:
    """What this process takes of a batch, pass by pass.

    All processes and passes take about as many rows as the next, side by side in the batch, so that rows of like length stay together.

    Args:
        train: the training rows.
        rows: (B,) long, those of the whole batch.
        passes: of each process.
    """
    processes = together()
    count = processes.count * passes
    ends = [len(rows) * part // count for part in range(count + 1)]
    for part in range(processes.rank * passes, (processes.rank + 1) * passes):
        place = slice(ends[part], ends[part + 1])
        own = rows[place]
        yield Part(own, train.take(own), place, len(own) / len(rows))


def add_up(parameters: Iterable[nn.Parameter], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums the gradients of parameters over all processes, in place, and returns the sums of scalars, the same in all of them.

    One flat tensor holds the gradients of all parameters that learn, whether they have one, and the metrics. Which layers ran differs from process
    to process: where one has no gradient it adds nothing, and where none has, there is none afterwards, so that an optimiser leaves
    the parameter as it is, as in one process. Gradients of parameters that are split over the processes are sums already.

    Args:
        parameters: in the same order in all processes.
        metrics: with the same names in all processes.
    """
    processes = together()
    if not processes.several:
        return metrics
    learning = [parameter for parameter in parameters if parameter.requires_grad and not is_split(parameter)]
    device = learning[0].device
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in learning]
    present = torch.tensor([float(parameter.grad is not None) for parameter in learning], device=device)
    values = torch.stack([value.to(device, torch.float32) for value in metrics.values()])
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), present, values])
    processes.add(flat)
    *summed, present, values = flat.split([*(parameter.numel() for parameter in learning), len(learning), len(values)])
    for parameter, gradient, has_one in zip(learning, summed, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if has_one else None
    return dict(zip(metrics, values.unbind(), strict=True))
