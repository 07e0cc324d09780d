"""The core against `routed_forward`: same routes, same compute, same score; and what an episode's end hands out."""

import math

import pytest
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor, nn

from envs import EnvOptions, SkipCore
from rl_skip import Examples, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routers import PolicyRouter
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead, FrameEmbedding
from rl_skip.nets.gated import GatedStack, HeadedStack

FRAMES = FrameEmbedding(frames=6, features=3, stride=1)
KINDS = ["blocks", "padded", "gated"]


def examples_of(kind: str, rows: int = 40) -> Examples:
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(rows, 6, 3, generator=generator) + 5 * torch.randn(rows, 1, 3, generator=generator)  # rows that look different
    labels = torch.randint(0, 4, (rows,), generator=generator)
    length = torch.randint(1, 7, (rows, 1), generator=generator) if kind != "blocks" else torch.full((rows, 1), 6)
    return Examples({"frames": frames, "mask": torch.arange(6) < length}, labels)


def stack_of(kind: str) -> ModuleStack | HeadedStack:
    torch.manual_seed(3)
    embed, head = FRAMES.build(8), ClassifierHead(8, 4)
    if kind == "gated":
        return HeadedStack(embed, GatedStack(8, 2, 5, body="attention", tokens=6), head)
    flops = [3000.0, 1000.0, 2000.0, 4000.0, 2500.0]
    return ModuleStack(embed, [AttentionBlock(8, 2) for _ in flops], head, width=8, layer_flops=flops, layers_take_mask=True)


def score(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)


class Squared(Reward):
    """score − price · compute²."""

    def penalty(self, compute: torch.Tensor, price: torch.Tensor | float) -> torch.Tensor:
        return price * compute.square()


def core_of(kind: str, *, num_envs: int = 7, reward: Reward = LINEAR, **rules: object) -> SkipCore:
    stack = stack_of(kind)
    made = JumpRules.reaching(ObservationLayout(stack.width, stack.depth), **rules)  # type: ignore[arg-type]
    return SkipCore(stack, made, examples_of(kind), score, num_envs=num_envs, price=(0.05, 2.0), reward=reward, seed=11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rules", [{}, {"allow_exit": True}, {"scope": "input", "max_jump": 2}, {"reward": Squared()}], ids=["reaching", "exit", "input", "squared"]
)
def test_episodes_give_what_routed_forward_gives_for_their_routes(kind: str, rules: dict[str, object]) -> None:
    core = core_of(kind, **rules)
    policy = JumpPolicy(core.rules)
    generator = torch.Generator().manual_seed(0)
    seen = [[row] for row in core.reset()]
    returns, episodes = torch.zeros(core.num_envs), 0
    for _ in range(40):
        shown = core.drawn.clone()
        step = core.step(torch.randint(0, core.rules.max_jump + 1, (core.num_envs,), generator=generator))
        returns += step.rewards
        if step.ends is not None:
            ends = step.ends
            rows = shown[ends.rows]
            with torch.no_grad():
                rollout = routed_forward(core.stack, PolicyRouter(policy, route=ends.route), core.examples.take(rows).inputs, price=ends.prices)
            torch.testing.assert_close(rollout.route, ends.route)
            torch.testing.assert_close(rollout.compute, ends.compute, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(score(rollout.outputs, core.examples.labels[rows]), ends.scores, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(returns[ends.rows], core.reward.total(ends.scores, rollout.compute, ends.prices), atol=1e-6, rtol=1e-5)
            lengths = torch.tensor([len(seen[n]) for n in ends.rows.tolist()])
            torch.testing.assert_close(lengths, rollout.decided.sum(dim=1))
            returns[ends.rows] = 0.0
            episodes += len(ends.rows)
        for n, row in enumerate(step.observations):
            seen[n] = [row] if step.terminated[n] else [*seen[n], row]
    assert episodes > 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", ["state", "input"])
def test_a_policy_acts_in_the_environment_as_in_routed_forward(kind: str, scope: str) -> None:
    core = core_of(kind, num_envs=12, scope=scope)
    torch.manual_seed(9)
    policy = JumpPolicy(core.rules)
    nn.init.normal_(policy.fc_out.weight)  # so that routes differ from row to row
    observations, waiting = core.reset(), torch.ones(12, dtype=torch.bool)
    rows, prices = core.drawn.clone(), core.state.price.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        rollout = routed_forward(core.stack, policy, core.examples.take(rows).inputs, price=prices)
        while waiting.any():
            step = core.step(policy(observations).argmax(dim=1))
            observations = step.observations
            for r, n in enumerate(step.ends.rows.tolist() if step.ends is not None else ()):
                if waiting[n]:
                    assert step.ends is not None
                    assert step.ends.route[r].tolist() == rollout.route[n].tolist()
                    waiting[n] = False
    assert len(rollout.route.unique(dim=0)) > 1


def test_layers_are_called_on_exactly_the_rows_whose_next_layer_they_are() -> None:
    core, called = core_of("blocks", num_envs=9), []
    original = core.stack.run

    def run(i: int, carry: object, rows: Tensor | None) -> Tensor:
        called.extend((i, n) for n in (range(len(carry.hidden)) if rows is None else rows.tolist()))  # type: ignore[attr-defined]
        return original(i, carry, rows)  # type: ignore[arg-type]

    core.stack.run = run  # type: ignore[method-assign, assignment]
    core.reset()
    assert called == [(0, n) for n in range(9)]
    ran = 9
    for _ in range(10):
        step = core.step(torch.randint(0, core.rules.max_jump + 1, (9,), generator=torch.Generator().manual_seed(1)))
        ran += 0 if step.ends is None else int(step.ends.route.sum())
    ended = ran - 9
    under_way = int(core.state.route.sum())  # type: ignore[union-attr]
    assert len(called) == ended + under_way


def test_an_illegal_jump_is_the_longest_legal_one() -> None:
    one, other = core_of("blocks"), core_of("blocks")
    one.reset()
    other.reset()
    for _ in range(6):
        longest = other.masks().sum(dim=1) - 1
        told, meant = one.step(torch.full((7,), one.rules.max_jump)), other.step(longest)
        assert torch.equal(told.observations, meant.observations)
        assert torch.equal(told.rewards, meant.rewards)


def test_a_jump_below_0_is_none() -> None:
    one, other = core_of("blocks"), core_of("blocks")
    one.reset()
    other.reset()
    assert torch.equal(one.step(torch.full((7,), -1)).observations, other.step(torch.zeros(7, dtype=torch.long)).observations)


def test_masks_follow_the_rules_after_each_layer() -> None:
    core = core_of("blocks", num_envs=3)
    core.reset()
    core.step(torch.tensor([0, 1, 2]))  # after layers 1, 2 and 3 of 5
    assert core.masks().int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]  # the third has passed layer 4 and begun anew


def test_masks_where_nobody_is_near_the_end() -> None:
    core = core_of("blocks", num_envs=2, allow_exit=True)
    core.reset()
    assert core.masks().int().tolist() == [[1, 1, 1, 1, 1]] * 2
    core.step(torch.tensor([2, 1]))
    assert core.masks().int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]


def test_the_core_never_changes_what_it_handed_out() -> None:
    core = core_of("gated")
    handed = [core.reset()]
    for _ in range(5):
        step = core.step(torch.zeros(7, dtype=torch.long))
        handed += [step.observations, step.rewards, step.terminated, core.masks()]
        if step.ends is not None:
            handed += [value for value in vars(step.ends).values() if value is not None]
    copies = [tensor.clone() for tensor in handed]
    for _ in range(5):
        core.step(torch.full((7,), 3))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(handed, copies, strict=True))
    for tensor in handed:
        tensor.zero_()
    fresh = core_of("gated")
    fresh.reset()
    for jump in [0] * 5 + [3] * 5:
        fresh.step(torch.full((7,), jump))
    assert torch.equal(core.step(torch.ones(7, dtype=torch.long)).observations, fresh.step(torch.ones(7, dtype=torch.long)).observations)


def test_a_new_episode_changes_neither_the_weights_nor_the_other_rows() -> None:
    """In "input" scope, where what was first seen is kept for each row while others begin anew."""
    gated = core_of("gated", scope="input")
    before = [parameter.clone() for parameter in gated.stack.parameters()]
    torch.manual_seed(0)
    flat = ModuleStack(nn.Identity(), [nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, 2), width=4, layer_flops=[1e5] * 4)
    rules = JumpRules.reaching(ObservationLayout(4, 4), scope="input")
    examples = Examples(torch.randn(30, 4), torch.zeros(30, dtype=torch.long))
    core = SkipCore(flat, rules, examples, score, num_envs=3, seed=0)
    gated.reset()
    core.reset()
    for _ in range(5):
        gated.step(torch.tensor([3, 0, 1, 3, 0, 0, 2]))
        shown, step = core.drawn.clone(), core.step(torch.tensor([2, 0, 1]))
        assert step.ends is not None
        shown_now = examples.inputs[core.drawn]  # type: ignore[index]
        spread = (shown_now.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(step.observations[:, :4], (shown_now - shown_now.mean(dim=1, keepdim=True)) / spread)
        rollout = routed_forward(flat, step.ends.route, examples.take(shown[step.ends.rows]).inputs)
        torch.testing.assert_close(score(rollout.outputs, step.ends.labels), step.ends.scores)
    assert all(torch.equal(old, new) for old, new in zip(before, gated.stack.parameters(), strict=True))


def test_new_weights_count_from_the_next_step_on() -> None:
    core = core_of("blocks", num_envs=1)
    core.reset()
    with torch.no_grad():
        core.stack.layers[4].mlp[2].weight.fill_(7.0)  # type: ignore[union-attr, index]
    step = core.step(torch.tensor([3]))
    rollout = routed_forward(core.stack, torch.tensor([True, False, False, False, True]), core.examples.inputs)
    assert step.ends is not None
    scores = score(rollout.outputs, core.examples.labels)
    assert (scores - step.ends.scores).abs().min() < 1e-6
    old = routed_forward(stack_of("blocks"), torch.tensor([True, False, False, False, True]), core.examples.inputs)
    assert (score(old.outputs, core.examples.labels) - step.ends.scores).abs().min() > 1e-6


def test_no_gradient_is_kept() -> None:
    core = core_of("gated")
    assert not core.reset().requires_grad
    assert not core.step(torch.zeros(7, dtype=torch.long)).rewards.requires_grad


def test_prices_are_drawn_log_uniformly_and_shown() -> None:
    core = core_of("blocks", num_envs=2000)
    observations = core.reset()
    logs = core.state.price.log()  # type: ignore[union-attr]
    assert logs.min() >= math.log(0.05) - 1e-6 and logs.max() <= math.log(2.0) + 1e-6
    assert abs(logs.mean() - (math.log(0.05) + math.log(2.0)) / 2) < 0.1
    torch.testing.assert_close(observations[:, -1], (logs - math.log(0.001)) / math.log(10_000) * 2 - 1, atol=1e-5, rtol=0)


def test_a_changed_price_counts_for_new_episodes() -> None:
    core = core_of("blocks", num_envs=1)
    core.price = 0.5
    core.reset()
    core.price = 1.5
    last = core.step(torch.tensor([3])).ends
    following = core.step(torch.tensor([3])).ends
    assert last is not None and following is not None
    assert (last.prices.item(), following.prices.item()) == (0.5, 1.5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"price": -1.0}, "price"),
        ({"price": math.nan}, "price"),
        ({"price_range": (0.0, 1.0)}, "price_range"),
        ({"price_range": (2.0, 1.0)}, "price_range"),
        ({"price": 0.1, "price_range": (0.1, 1.0)}, "price_range"),
        ({"max_jump": 8}, "max-jump"),
        ({"layers": 0}, "layers"),
        ({"score": "luck"}, "score"),
        ({"split": "all"}, "split"),
        ({"policy_scope": "output"}, "scope"),
        ({"task": "nonsense"}, "task"),
        ({"device": "abacus"}, "device"),
        ({"stack": stack_of("blocks"), "layers": 5}, "layers"),
        ({"stack": stack_of("blocks"), "run": "somewhere"}, "run"),
        ({"examples": examples_of("blocks")}, "stack"),
        ({"stack": stack_of("blocks"), "examples": examples_of("blocks", rows=0)}, "examples"),
        ({"run": "no/such/run"}, "run"),
    ],
)
def test_a_mistake_is_told_in_one_line(options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        EnvOptions(**options).core(2)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_there_is_at_least_one_environment() -> None:
    with pytest.raises(UserError, match="num_envs"):
        EnvOptions().core(0)


def test_stepping_comes_after_reset() -> None:
    with pytest.raises(ResetNeeded, match="reset"):
        EnvOptions().core(2).step(torch.zeros(2, dtype=torch.long))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_stays_on_the_device() -> None:
    core = EnvOptions(device="cuda", price_range=(0.1, 1.0)).core(8)
    assert core.reset().is_cuda
    host, device = EnvOptions(price_range=(0.1, 1.0)).core(8), core
    first, second = host.reset(list(range(8))), device.reset(list(range(8)))
    torch.testing.assert_close(first, second.cpu(), atol=1e-3, rtol=1e-3)
    for _ in range(6):
        step = device.step(torch.zeros(8, dtype=torch.long, device="cuda"))
        torch.testing.assert_close(host.step(torch.zeros(8, dtype=torch.long)).rewards, step.rewards.cpu(), atol=1e-3, rtol=1e-3)
        assert all(tensor.is_cuda for tensor in (step.observations, step.rewards, step.terminated, device.masks()))
