"""How long batches take: full depth, the policy, and its routes without it, in turns; and where skipping begins to pay."""

from collections.abc import Callable, Iterable
from itertools import cycle

import torch
from torch import Tensor

from rl_skip.core.clock import seconds_per_batch
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs, take_rows, trimmed
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare.result import BatchTime

__all__ = ["BATCH_SIZES", "batch_times"]

BATCH_SIZES = (1, 8, 64)
BATCHES = 9
"""Different batches that are timed in turn, since one batch's routes may be short or long by chance."""
REPEATS = 27


@torch.no_grad()
def batch_times(model: SkipModel, inputs: Inputs, route: Tensor, compute: float, device: torch.device, full: float = 1.0) -> tuple[BatchTime, ...]:
    """Times at 1, 8 and 64 rows, medians over different batches.

    The break-even point supposes that a batch costs a fixed part, a part for the layers that grows with compute, and a
    part for finding rows and running the policy that grows with compute too, since there is one decision for each layer
    run. The first two come from full depth and layer 0 alone; the third is what the policy took beyond them.

    Args:
        inputs: N rows.
        route: (N, L), the policy's.
        compute: the policy's mean compute.
        full: the compute of full depth; above 1 where there are gates.
    """
    stack, N = model.stack.eval(), len(route)
    everything = torch.ones(stack.depth, dtype=torch.bool)
    first = torch.zeros_like(everything)
    first[0] = True
    times = []
    for size in sorted({min(size, N) for size in BATCH_SIZES}):
        starts = [k * size % (N - size + 1) for k in range(BATCHES)]
        batches = [(trimmed(take_rows(inputs, slice(start, start + size))), route[start : start + size]) for start in starts]
        ways: dict[str, Callable[[Inputs, Tensor], object]] = {
            "full": lambda x, _route: routed_forward(stack, everything, x),
            "policy": lambda x, _route: routed_forward(stack, model.policy, x, price=model.price),
            "same": lambda x, route: routed_forward(stack, route, x),
            "first": lambda x, _route: routed_forward(stack, first, x),
        }
        taken = seconds_per_batch({name: _in_turn(way, batches) for name, way in ways.items()}, device, repeats=REPEATS)
        times.append(_batch_time(size, taken, compute, full, float(stack.layer_costs[0])))
    return tuple(times)


def _in_turn(way: Callable[[Inputs, Tensor], object], batches: Iterable[tuple[Inputs, Tensor]]) -> Callable[[], object]:
    """A call that takes the next batch each time."""
    upcoming = cycle(batches)
    return lambda: way(*next(upcoming))


def _batch_time(size: int, seconds: dict[str, float], compute: float, full: float, least: float) -> BatchTime:
    per_compute = max(seconds["full"] - seconds["first"], 0.0) / (full - least)
    plain = seconds["full"] - per_compute * (full - compute)  # what the compute alone would take
    overhead = max(seconds["policy"] - plain, 0.0) / compute
    return BatchTime(
        batch_size=size,
        full_depth=1000 * seconds["full"],
        policy=1000 * seconds["policy"],
        same_routes=1000 * seconds["same"],
        policy_share=max(seconds["policy"] - seconds["same"], 0.0) / seconds["policy"],
        break_even=full * per_compute / (per_compute + overhead) if per_compute > 0 else 0.0,
    )
