"""Measuring what the layers, readouts and decisions of a stack take by the clock."""

import platform
from collections.abc import Callable, Sequence
from copy import copy

import torch

from rl_skip.core.batches import deployed
from rl_skip.core.clock import seconds_per_batch
from rl_skip.core.errors import UserError
from rl_skip.core.features import default_features
from rl_skip.core.inputs import Inputs, row_count, take_rows
from rl_skip.core.measured_costs import BatchTimes, MeasuredCosts
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.routing import RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["BATCH_SIZES", "REPEATS", "measure_costs"]

BATCH_SIZES = (1, 8, 64)
REPEATS = 9
"""Timed calls of each part, of which the median counts."""


@torch.no_grad()
def measure_costs(
    stack: LayerStack,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: torch.device | str = "cpu",
    *,
    example: Inputs,
    policy: JumpPolicy | None = None,
    repeats: int = REPEATS,
) -> MeasuredCosts:
    """What the parts of a routed pass take, in milliseconds for each row; `stack.costs = measure_costs(…)` makes compute a share of time.

    The parts take turns, so that other work on the machine falls on all of them alike. Time is charged as at the first batch size.

    Args:
        stack: it is moved to `device`, and left in the mode that it was in.
        batch_sizes: rows of a batch.
        device: where.
        example: inputs of some rows as they come; a batch repeats them as often as it needs.
        policy: who decides; None: one of the default size, which takes as long.
        repeats: timed calls of each part.

    Raises:
        UserError: if a batch size is below 1, or there is none.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"time is measured for batches of at least 1 row, got {list(batch_sizes)}; set batch_sizes, or --cost-batch")
    device = torch.device(device)
    stack.to(device)
    deciding = (_default_policy(stack) if policy is None else policy).to(device)
    with deployed(stack):
        batches = [_batch_times(stack, deciding, _batch(example, size, device), device, repeats) for size in batch_sizes]
    machine = f"{platform.machine()} {device.type}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return MeasuredCosts(batches, stack.layer_costs.tolist(), machine=machine)


def _default_policy(stack: LayerStack) -> JumpPolicy:
    readout_flops = 0.0 if stack.readouts is None else stack.readouts.flops
    features = default_features(stack.has_memory, stack.readouts is not None, 0 if stack.readouts is None else stack.readouts.classes)
    layout = ObservationLayout(stack.width, stack.depth, features=features, readout_flops=readout_flops)
    return JumpPolicy(JumpRules.reaching(layout, allow_exit=stack.readouts is not None))


def _batch(example: Inputs, size: int, device: torch.device) -> Inputs:
    rows = torch.arange(size).remainder(row_count(example))
    batch = take_rows(example, rows)
    return batch.to(device) if isinstance(batch, torch.Tensor) else {name: tensor.to(device) for name, tensor in batch.items()}


def _batch_times(stack: LayerStack, policy: JumpPolicy, batch: Inputs, device: torch.device, repeats: int) -> BatchTimes:
    rows = row_count(batch)
    begun = RoutingState(stack, policy.rules, batch, 0.1)
    readouts, router = stack.readouts, PolicyRouter(policy)
    everyone = begun.visit(0)
    assert everyone is not None
    counted = stack.layer_costs[0].expand(rows)

    def layer(i: int) -> Callable[[], object]:
        return lambda: stack.run(i, copy(begun.carry), None)

    def decide() -> None:
        begun.ran(0, everyone, counted)  # which forgets the last look, as after a layer
        begun.follow(everyone, router.decide(begun, 0, everyone))

    calls: dict[str, Callable[[], object]] = {str(i): layer(i) for i in range(stack.depth)} | {"decision": decide}
    if readouts is not None:
        calls["readout"] = lambda: stack.read(readouts.each[0], copy(begun.carry), None)

    def computing(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with stack.computing(device):
                call()

        return run

    taken = seconds_per_batch({name: computing(call) for name, call in calls.items()}, device, repeats)
    times = {name: 1000 * seconds / rows for name, seconds in taken.items()}
    return BatchTimes(rows, tuple(times[str(i)] for i in range(stack.depth)), times["decision"], times.get("readout", 0.0))
