"""Features: what each reads, what it remembers from look to look, and policies that see one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rl_skip
from envs.episodes import Episodes
from examples.own_feature import ChangeNorm
from rl_skip import Feature, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, PolicyRouter, RoutingState, UserError, View, routed_forward
from rl_skip.core.features import ALWAYS as ALWAYS_SEEN
from rl_skip.core.features import FEATURES, find_features

WIDTH, DEPTH, ROWS = 6, 5, 9


class Costly(Feature):
    name = "costly"

    def flops(self, width: int) -> int:
        return 1000 * width

    def read(self, view: View) -> Tensor:
        return view.hidden[:, :1]


def make_stack() -> ModuleStack:
    torch.manual_seed(0)
    return ModuleStack(nn.Identity(), [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)], nn.Linear(WIDTH, 2), width=WIDTH, layer_flops=[1000.0] * DEPTH)


def make_policy(*features: Feature) -> JumpPolicy:
    torch.manual_seed(1)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, features=features)))
    policy.fc_out.weight.data.normal_(std=0.3)
    return policy


def test_an_own_feature_reads_the_change_since_the_last_look_on_every_route() -> None:
    stack, policy, x = make_stack(), make_policy(ChangeNorm()), torch.randn(ROWS, WIDTH)
    seen: list[tuple[int, Tensor, Tensor]] = []

    class Watched(PolicyRouter):
        def decide(self, state: RoutingState, i: int, rows: Tensor) -> rl_skip.Decision:
            decision = super().decide(state, i, rows)
            if decision.observation is not None:
                seen.append((i, rows, decision.observation[:, 0]))
            return decision

    rollout = routed_forward(stack, Watched(policy, sample=True), x)
    assert len(rollout.route.unique(dim=0)) > 1, "the rows must not all take one route"
    states: list[dict[int, Tensor]] = []
    for row in range(ROWS):
        hidden, found = x[row], {}
        for i in rollout.route[row].nonzero().squeeze(1).tolist():
            hidden = stack.layers[i](hidden)
            found[i] = hidden
        states.append(found)
    compared = 0
    for i, rows, changes in seen:
        for row, change in zip(rows.tolist(), changes, strict=True):
            earlier = [states[row][k] for k in sorted(states[row]) if k < i]
            before = earlier[-1] if earlier else torch.zeros(WIDTH)
            torch.testing.assert_close(change, (states[row][i] - before).norm())
            compared += 1
    assert compared > ROWS


def test_looking_twice_after_a_layer_gives_the_same_and_a_row_of_a_new_episode_begins_anew() -> None:
    stack, policy, x = make_stack(), make_policy(ChangeNorm()), torch.randn(ROWS, WIDTH)
    everyone = torch.arange(ROWS)
    with torch.no_grad():
        state = Episodes(stack, policy.rules, x, torch.full((ROWS,), 0.1))
        state.visit(0)
        state.note()
        first = state.observe(everyone)
        assert torch.equal(state.observe(everyone), first)
        state.follow(everyone, rl_skip.Decision(torch.ones(ROWS, dtype=torch.long)))
        state.visit(1)
        state.note()
        second = state.observe(everyone)
        assert torch.equal(state.observe(everyone), second) and not torch.equal(second[:, 0], first[:, 0])
        state.begin(np.array([2, 5]), x[[2, 5]], torch.full((2,), 0.1))
        torch.testing.assert_close(state.observe(torch.tensor([2, 5])), first[[2, 5]])
        assert torch.equal(state.observe(everyone)[[0, 1, 3]], second[[0, 1, 3]])


def test_what_a_feature_costs_is_part_of_the_decision() -> None:
    plain, costly = (ObservationLayout(WIDTH, DEPTH, features=(*find_features(["hidden"]), *more)) for more in ((), (Costly(),)))
    extra = JumpRules.reaching(costly).decision_flops - JumpRules.reaching(plain).decision_flops
    assert extra == 1000 * WIDTH + 2 * JumpRules.reaching(plain).hidden  # reading it, and one more number for the policy


def test_an_observation_stays_within_the_bounds_of_its_features() -> None:
    layout = ObservationLayout(WIDTH, DEPTH, features=(ChangeNorm(),))
    low, high = layout.bounds()
    assert low.tolist() == [0, 0, 0, -1] and high[-1] == 1 and low.shape == (layout.size,)


def test_a_feature_that_gives_another_shape_than_it_says_is_named() -> None:
    class Wrong(Feature):
        name = "wrong"

        def read(self, view: View) -> Tensor:
            return view.hidden

    with pytest.raises(UserError, match=rf"the feature 'wrong' must give \({ROWS}, 1\) numbers, got shape \({ROWS}, {WIDTH}\)"):
        routed_forward(make_stack(), make_policy(Wrong()), torch.randn(ROWS, WIDTH))


TWICE, ALWAYS = (ChangeNorm(), ChangeNorm()), (ALWAYS_SEEN[-1],)


@pytest.mark.parametrize(("features", "named"), [(TWICE, "'change_norm' is named twice"), (ALWAYS, "'price' is part of every")])
def test_features_that_cannot_be_told_apart_are_refused(features: tuple[Feature, ...], named: str) -> None:
    with pytest.raises(UserError, match=named):
        ObservationLayout(WIDTH, DEPTH, features=features)


def test_a_policy_that_sees_an_own_feature_is_saved_and_needs_it_to_be_loaded(tmp_path: Path) -> None:
    stack, policy, x = make_stack(), make_policy(*find_features(["hidden"]), ChangeNorm()), torch.randn(ROWS, WIDTH)
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=0.1)
    described = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert [part["name"] for part in described["observation"]["features"]] == ["hidden", "change_norm", "position", "compute", "price"]
    with pytest.raises(UserError, match=r"sees the feature 'change_norm', which is not known here; pass it with features=\[…\]"):
        rl_skip.load(tmp_path / "policy", make_stack())
    with torch.no_grad():
        expected = routed_forward(stack, policy, x, price=0.1)
        model = rl_skip.load(tmp_path / "policy", make_stack(), features=[ChangeNorm()])
        assert torch.equal(model(x), expected.outputs)
    assert model.last is not None and torch.equal(model.last.route, expected.route)


def test_a_name_in_a_policy_folder_never_runs_a_file(tmp_path: Path) -> None:
    stack, policy = make_stack(), make_policy(*find_features(["hidden"]))
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=0.1)
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nfeature = None\n")
    file = tmp_path / "policy" / "policy.json"
    described = json.loads(file.read_text())
    described["observation"]["features"][0]["name"] = f"{tmp_path / 'trap.py'}:feature"
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="not known here"):
        rl_skip.load(tmp_path / "policy", make_stack())
    assert not (tmp_path / "ran").exists()


def test_every_bundled_feature_is_registered_under_its_name() -> None:
    assert all(FEATURES.find(name).name == name for name in FEATURES.names())


def test_a_state_is_seen_within_bounds_that_it_can_reach() -> None:
    layout = ObservationLayout(WIDTH, DEPTH, features=find_features(["hidden"]))
    low, high = layout.bounds()
    stack, extreme = make_stack(), torch.eye(WIDTH)[:1] * 50  # one number apart from all others
    for layer in stack.layers:
        nn.init.eye_(layer.weight)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    state = RoutingState(stack, JumpRules.reaching(layout), extreme, 10.0)
    state.visit(0)
    seen = state.observe(torch.arange(1))[0]
    assert high[0].item() == pytest.approx((WIDTH - 1) ** 0.5) == pytest.approx(seen[0].item(), abs=1e-4)
    assert (low <= seen).all() and (seen <= high).all() and high[WIDTH:].tolist() == [1, 4, 1]
