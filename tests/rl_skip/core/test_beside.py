"""Passes that run once what rows have in common, against passes that run it for each."""

import pytest
import torch
from torch import Tensor, nn

from rl_skip.core.beside import partings, routed_beside_full
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import take_rows
from rl_skip.core.routers import PolicyRouter, next_layers
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task
from tests.rl_skip.core.test_routing import DEPTH, _inputs, _policy, _stack

ROWS = 24
TASK = load_task("digits", None)


def routes(rows: int, depth: int, leave: bool) -> Tensor:
    """Of all kinds: full depth, leaving after each layer, jumps after each, and any."""
    leaving = torch.ones(depth, depth, dtype=torch.bool).tril()
    jumping = ~torch.eye(depth, dtype=torch.bool)
    drawn = torch.cat([leaving, jumping, torch.rand(rows, depth) < 0.5])[torch.randperm(2 * depth + rows)[:rows]]
    drawn[:, 0] = True
    drawn[:, -1] |= not leave
    return drawn


def own_stack(kind: str, readouts: bool) -> tuple[LayerStack, Tensor]:
    torch.manual_seed(3)
    stack = build_network(NetworkConfig(layers=5, width=16, heads=2, stack=kind), TASK.embedding, TASK.tokens, 10).double()
    inputs = TASK.load("train").inputs[:ROWS].double()
    if readouts:
        stack.add_readouts(inputs[:2])
        for parameter in stack.readouts.parameters():
            nn.init.normal_(parameter, std=0.5)
    return stack, inputs


def weighed(outputs: Tensor, seed: int) -> Tensor:
    return (outputs * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=outputs.dtype)).sum()


def compare(stack: LayerStack, route: Tensor, inputs: Tensor | dict[str, Tensor]) -> None:
    """Outputs and gradients beside full depth, and those of two passes."""
    learners = list(stack.parameters())
    apart = routed_forward(stack, route, inputs).outputs, routed_forward(stack, torch.ones_like(route), inputs).outputs
    together = routed_beside_full(stack, route, inputs)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    gradients = [torch.autograd.grad(weighed(own, 1) + weighed(full, 2), learners, allow_unused=True) for own, full in (together, apart)]
    for learner, *found in zip(learners, *gradients, strict=True):
        one, other = (torch.zeros_like(learner) if gradient is None else gradient for gradient in found)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        for one, other in zip(routed_beside_full(stack, route, inputs), apart, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("leave", [False, True])
def test_routes_beside_full_depth_are_what_two_passes_give(padded: bool, leave: bool) -> None:
    torch.manual_seed(1)
    compare(_stack(), routes(ROWS, DEPTH, leave), _inputs(ROWS, padded))


@pytest.mark.parametrize(("kind", "readouts"), [("blocks", True), ("blocks", False), ("skip-layer", False)])
def test_rows_that_leave_are_answered_by_their_readouts_and_jumps_are_marked(kind: str, readouts: bool) -> None:
    stack, inputs = own_stack(kind, readouts)
    compare(stack, routes(ROWS, 5, leave=True), inputs)


@pytest.mark.parametrize("route", [[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
def test_one_route_of_all_rows(route: list[int]) -> None:
    stack, inputs = own_stack("blocks", readouts=True)
    compare(stack, torch.tensor(route).bool(), inputs)


def test_each_layer_runs_a_row_once_where_its_route_is_full_depth_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, inputs = own_stack("blocks", readouts=True)
    ran: list[tuple[int, int]] = []
    run = stack.run
    monkeypatch.setattr(stack, "run", lambda i, carry, rows: ran.append((i, ROWS if rows is None else len(rows))) or run(i, carry, rows))
    route = torch.zeros(ROWS, 5, dtype=torch.bool)
    route[:4], route[4:9, :3], route[9:, [0, 1, 3]] = True, True, True
    routed_beside_full(stack, route, inputs)
    assert sorted(ran) == [(0, ROWS), (1, ROWS), (2, ROWS), (3, 15), (3, ROWS), (4, ROWS)]


def test_where_routes_part_from_full_depth() -> None:
    route = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    assert partings(next_layers(route)).tolist() == [3, 2, 0, 1, 0]


@pytest.mark.parametrize("scope", ["state", "input"])
@pytest.mark.parametrize("padded", [False, True])
def test_copies_are_rows_that_were_given_several_times(padded: bool, scope: str) -> None:
    torch.manual_seed(5)
    stack, policy, inputs, price = _stack(), _policy(allow_exit=True, scope=scope), _inputs(8, padded), torch.rand(24)
    router = PolicyRouter(policy, chances=torch.rand(24, DEPTH))
    critic = nn.Sequential(nn.Linear(policy.rules.layout.size, 1), nn.Flatten(0))
    copied = routed_forward(stack, router, inputs, price=price, critic=critic, copies=3)
    given = routed_forward(stack, router, take_rows(inputs, torch.arange(8).repeat_interleave(3)), price=price, critic=critic)
    assert torch.equal(copied.route, given.route) and len(given.route.unique(dim=0)) > 4
    for name in ("outputs", "spent", "log_probs", "entropies", "values"):
        torch.testing.assert_close(getattr(copied, name), getattr(given, name), atol=1e-6, rtol=1e-5)


def test_layer_0_runs_once_for_all_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, inputs = own_stack("skip-layer", readouts=False)
    ran: list[tuple[int, int]] = []
    run = stack.run

    def watched(i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        ran.append((i, carry.hidden.shape[0] if rows is None else len(rows)))
        return run(i, carry, rows)

    monkeypatch.setattr(stack, "run", watched)
    route = routes(3 * ROWS, 5, leave=False)
    copied = routed_forward(stack, route, inputs, copies=3)
    assert ran[0] == (0, ROWS) and [rows for i, rows in ran if i == 4] == [3 * ROWS]
    given = routed_forward(stack, route, inputs.repeat_interleave(3, dim=0))
    torch.testing.assert_close(copied.outputs, given.outputs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(copied.compute, given.compute)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 6), (4, 6, 1)])
def test_routes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a route must have shape \(6,\) or \(4, 6\), got"):
        routed_beside_full(_stack(), torch.ones(shape, dtype=torch.bool), _inputs(4, padded=False))


def test_copies_and_prices_that_do_not_fit_are_refused() -> None:
    stack, policy, inputs = _stack(), _policy(), _inputs(4, padded=False)
    for copies in (0, -1):
        with pytest.raises(ValueError, match=f"copies must be at least 1, got {copies}"):
            routed_forward(stack, policy, inputs, copies=copies)
    with pytest.raises(ValueError, match=r"one for each of 8 rows, got shape \(4,\)"):
        routed_forward(stack, policy, inputs, price=torch.rand(4), copies=2)
