"""A pass of all rows through all layers, whose layers are known beforehand, against one that decides after each."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rl_skip import JumpPolicy, JumpRules, LayerStack, ModuleStack, ObservationLayout, SkipLayer
from rl_skip.core.exits import EveryExit
from rl_skip.core.features import CONFIDENCES, Feature, View
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.routing import Decision, RoutingState

WIDTH, DEPTH, CLASSES, ROWS = 6, 4, 3, 5


class Ran(Feature):
    """How many layers the row has run, and whether it waits: of the routing state itself."""

    name = "ran"

    def size(self, width: int) -> int:
        return 2

    def read(self, view: View) -> Tensor:
        state = view.state
        return torch.stack([state.route[view.rows].sum(dim=1), state.next_layer[view.rows]], dim=1)  # type: ignore[attr-defined]


class Undecided(EveryExit):
    """One that does not tell beforehand."""

    def known(self, depth: int) -> None:  # type: ignore[override]
        return None


def modules() -> LayerStack:
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    return ModuleStack(nn.Linear(WIDTH, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[2000.0] * DEPTH)


@pytest.mark.parametrize("features", [CONFIDENCES, (*CONFIDENCES, Ran())], ids=["read at once", "read after each"])
@pytest.mark.parametrize("make", [modules, lambda: SkipLayer(WIDTH, 2, DEPTH)], ids=["modules", "marks jumps"])
def test_what_is_known_beforehand_is_what_comes_of_it(make, features) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    stack, x = make(), torch.randn(ROWS, 3, WIDTH)
    readouts = stack.add_readouts(x[:2], plan={"rank": 2} if stack.readout() is None else None)
    layout = ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, features, readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False))
    found: list[tuple[Rollout, EveryExit]] = []
    for kind in (EveryExit, Undecided):
        router = kind(policy)
        found.append((routed_forward(stack, router, x, price=torch.linspace(0.02, 0.5, ROWS)), router))
    (known, saw), (decided, expected) = found
    assert known.outputs.requires_grad
    for name in ("outputs", "route", "jumps", "decided", "log_probs", "spent", "compute"):
        assert torch.equal(getattr(known, name), getattr(decided, name)), name
    assert torch.equal(saw.observations(), expected.observations())
    assert torch.equal(torch.stack(saw.answers), torch.stack(expected.answers))
    assert torch.equal(saw.compute(known.spent), expected.compute(decided.spent))


class Early(EveryExit):
    """One that sends the even rows away after layer 1."""

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        decision = super().decide(state, i, rows)
        return replace(decision, next_layer=torch.where(rows % 2 == 0, DEPTH, i + 1)) if i == 1 else decision


def test_one_of_ones_own_that_decides_otherwise_is_asked() -> None:
    stack, x = modules(), torch.randn(ROWS, 3, WIDTH)
    readouts = stack.add_readouts(x[:2])
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, CONFIDENCES, readouts.flops), allow_exit=True, jumps=False))
    route = routed_forward(stack, Early(policy), x).route
    assert route.sum(dim=1).tolist() == [2 if row % 2 == 0 else DEPTH for row in range(ROWS)]
