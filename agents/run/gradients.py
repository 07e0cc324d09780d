"""Gradients and metrics of all processes added up in one message."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl_skip.core.processes import together

__all__ = ["add_up"]


def add_up(parameters: Sequence[nn.Parameter], metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums the gradients of parameters over all processes, in place, and returns the sums of scalars, the same in all of them.

    One flat tensor holds the gradients of all parameters that learn, whether they have one, and the metrics. Which layers ran differs from process
    to process: where one has no gradient it adds nothing, and where none has, there is none afterwards, so that an optimiser leaves
    the parameter as it is, as in one process.

    Args:
        parameters: in the same order in all processes.
        metrics: with the same names in all processes.
    """
    processes = together()
    if not processes.several:
        return metrics
    learning = [parameter for parameter in parameters if parameter.requires_grad]
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
