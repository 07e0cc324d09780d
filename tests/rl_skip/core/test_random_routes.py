"""Random routes: what they cost, that all layers have the same chance, and that no jump is longer than the rules allow."""

import pytest
import torch

from rl_skip.core.policy import JumpRules, ObservationLayout
from rl_skip.core.random_routes import random_routes, random_routes_at

DEPTH = 5
EVEN = torch.full((DEPTH,), 1 / DEPTH)


def rules_of(depth: int = DEPTH, max_jump: int | None = None, allow_exit: bool = False) -> JumpRules:
    return JumpRules.reaching(ObservationLayout(16, depth), max_jump, allow_exit=allow_exit)


@pytest.mark.parametrize("max_jump", [1, 2, 6])
@pytest.mark.parametrize("allow_exit", [False, True])
def test_routes_are_those_of_a_loop_over_rows_and_layers(max_jump: int, allow_exit: bool) -> None:
    rules, depth = rules_of(8, max_jump, allow_exit), 8
    generator = torch.Generator().manual_seed(0)
    chances, keep = torch.rand(300, depth, generator=generator), torch.rand(300, 1, generator=generator)
    for route, chance, kept in zip(random_routes(chances, keep, rules).tolist(), chances, keep, strict=True):
        last = 0
        for i in range(depth):
            runs = i == 0 or bool(chance[i] < kept) or i - last - 1 == max_jump
            last = i if runs else last
            assert route[i] == (runs or (i == depth - 1 and not allow_exit))


def test_without_jumps_as_many_layers_run_but_the_first_ones() -> None:
    rules, costs = JumpRules.reaching(ObservationLayout(16, DEPTH), allow_exit=True, jumps=False), torch.tensor([0.1, 0.5, 0.1, 0.1, 0.2])
    generator = torch.Generator().manual_seed(0)
    chances, keep = torch.rand(300, DEPTH, generator=generator), torch.rand(300, 1, generator=generator)
    for route, chance, kept in zip(random_routes(chances, keep, rules).tolist(), chances, keep, strict=True):
        count = 1 + sum(bool(one < kept) for one in chance[1:])
        assert route == [True] * count + [False] * (DEPTH - count)
    routes = random_routes_at(0.65, 3000, costs, rules)
    assert float((routes.float() @ costs).mean()) == pytest.approx(0.65, abs=1e-3)
    assert not (routes[:, 1:] & ~routes[:, :-1]).any()


@pytest.mark.parametrize("compute", [0.4, 0.53, 0.9, 1.0])
def test_they_cost_what_was_asked_and_treat_all_layers_alike(compute: float) -> None:
    routes = random_routes_at(compute, 4000, EVEN, rules_of())
    assert routes[:, 0].all() and routes[:, -1].all()
    assert float(routes.double().mean()) == pytest.approx(compute, abs=1 / 4000)
    middle = routes[:, 1:-1].float().mean(dim=0)
    assert float(middle.max() - middle.min()) < 0.05


@pytest.mark.parametrize("allow_exit", [False, True])
def test_layers_that_differ_in_cost_are_weighed_and_the_longest_jump_is_kept_to(allow_exit: bool) -> None:
    rules, costs = rules_of(max_jump=2, allow_exit=allow_exit), torch.tensor([0.1, 0.5, 0.1, 0.1, 0.2])
    for compute in (0.6, 0.75):
        routes = random_routes_at(compute, 3000, costs, rules)
        assert float((routes.float() @ costs).mean()) == pytest.approx(compute, abs=1e-3)
        assert (routes | routes.roll(1, 1) | routes.roll(2, 1))[:, 2:].all()


def test_below_the_cheapest_and_above_full_depth_they_are_as_near_as_can_be() -> None:
    assert random_routes_at(0.1, 7, EVEN, rules_of()).tolist() == [[True, False, False, False, True]] * 7
    assert random_routes_at(1.2, 7, EVEN, rules_of()).all()


def test_where_full_depth_costs_more_than_its_layers_they_keep_to_the_share() -> None:
    full, share = 3.9, 0.6
    assert float(random_routes_at(share * full, 4000, EVEN, rules_of(), full=full).double().mean()) == pytest.approx(share, abs=1 / 4000)


def test_the_seed_decides() -> None:
    first, same, other = (random_routes_at(0.6, 50, EVEN, rules_of(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
