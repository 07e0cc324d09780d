"""The routed forward against a slow loop that takes one row at a time, without padding, through the layers of its route."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import rl_skip.core.heading as heading
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.reward import Reward
from rl_skip.core.routers import PolicyRouter, next_layers
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead
from rl_skip.nets.module_stack import ModuleStack

WIDTH, TOKENS, DEPTH, FEATURES, CLASSES = 8, 6, 6, 3, 4
FLOPS = [1e4, 2e4, 3e4, 1e4, 2e4, 7e4]


class Embed(nn.Module):
    """{"x", "mask"} → tokens and mask; a plain tensor → tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, WIDTH)

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        return self.linear(inputs) if isinstance(inputs, Tensor) else (self.linear(inputs["x"]), inputs["mask"])


def _stack() -> ModuleStack:
    layers = [AttentionBlock(WIDTH, 2) for _ in range(DEPTH)]
    # Decisions are taken in single precision; the network in double, so that sums in another order hide no mistake.
    return ModuleStack(Embed(), layers, ClassifierHead(WIDTH, CLASSES), width=WIDTH, layer_flops=FLOPS, layers_take_mask=True).double()


def _policy(max_jump: int | None = None, **options: object) -> JumpPolicy:
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH), max_jump, hidden=16, **options))
    policy.fc_out.weight.data.normal_(std=2.0)  # opinions strong enough for rows to part
    return policy


def _inputs(rows: int, padded: bool) -> Tensor | dict[str, Tensor]:
    x = torch.randn(rows, TOKENS, FEATURES, dtype=torch.double)
    if not padded:
        return x.requires_grad_()
    mask = torch.rand(rows, TOKENS) < 0.6
    mask[torch.arange(rows), torch.randint(TOKENS, (rows,))] = True
    return {"x": x.requires_grad_(), "mask": mask}


def _routes(rows: int, allow_exit: bool) -> Tensor:
    route = torch.rand(rows, DEPTH) < 0.5
    route[:, 0] = True
    if not allow_exit:
        route[:, -1] = True
    return route


@dataclass
class Expected:
    """What the slow loop found for a batch, one entry a row or a decision."""

    outputs: list[Tensor] = field(default_factory=list)
    routes: list[list[bool]] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    log_probs: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    entropies: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int], Tensor] = field(default_factory=dict)


def _observe(policy: JumpPolicy, hidden: Tensor, i: int, compute: float, price: float) -> Tensor:
    layout = policy.rules.layout
    rest = torch.tensor([i / DEPTH, compute])
    pooled = hidden[0].mean(0).detach().float()
    pooled = (pooled - pooled.mean()) / (pooled.var(correction=0) + 1e-5).sqrt()
    return torch.cat([pooled, rest, layout.scale_price(torch.tensor([price]))])


def _one_row_at_a_time(stack, policy, inputs, price, routes=None, critic=None) -> Expected:
    """`routes` (B, L) are followed; without them the likeliest jump is."""
    found, rules = Expected(), policy.rules
    decision = (2 * (WIDTH + 3) * 16 + 2 * 16 * (rules.max_jump + 1)) / sum(FLOPS)
    padded = isinstance(inputs, dict)
    for row, x in enumerate(inputs["x"] if padded else inputs):
        hidden = first = stack.embed.linear(x[inputs["mask"][row]] if padded else x).unsqueeze(0)  # (1, its own tokens, D)
        i, ran, compute = 0, [False] * DEPTH, 0.0
        while i < DEPTH:
            hidden = stack.layers[i](hidden)
            ran[i], compute = True, compute + FLOPS[i] / sum(FLOPS)
            reachable = sorted({min(i + 1 + a, DEPTH if rules.allow_exit else DEPTH - 1) for a in range(rules.max_jump + 1)} - {i})
            following = min(i + 1, DEPTH)
            if i < DEPTH - 1 and len(reachable) > 1:
                observation = _observe(policy, first if rules.scope == "input" else hidden, i, compute, price[row].item())
                compute += decision
                log_p = torch.log_softmax(policy(observation.unsqueeze(0))[0, : len(reachable)], dim=0)
                later = None if routes is None else next((j for j in range(i + 1, DEPTH) if routes[row, j]), DEPTH)
                action = int(log_p.argmax()) if later is None else reachable.index(later)
                found.log_probs[row, i] = log_p[action]
                found.entropies[row, i] = -(log_p.exp() * log_p).sum()
                if critic is not None:
                    found.values[row, i] = critic(observation.unsqueeze(0))[0]
                following = reachable[action]
            i = following
        found.outputs.append(stack.head(hidden)[0])
        found.routes.append(ran)
        found.compute.append(compute)
    return found


def _dense(entries: dict[tuple[int, int], Tensor], rows: int) -> Tensor:
    table = torch.zeros(rows, DEPTH)
    for where, value in entries.items():
        table[where] = value
    return table


def _compare(rollout: Rollout, expected: Expected, rows: int) -> None:
    assert rollout.route.tolist() == expected.routes
    torch.testing.assert_close(rollout.outputs, torch.stack(expected.outputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.compute, torch.tensor(expected.compute), atol=1e-5, rtol=1e-5)
    for name in ("log_probs", "entropies", "values"):
        torch.testing.assert_close(getattr(rollout, name), _dense(getattr(expected, name), rows), atol=1e-5, rtol=1e-5)
    assert {(row, i) for row, i in rollout.decided.nonzero().tolist()} == set(expected.log_probs)


def _gradients(outputs: Tensor, log_probs: Tensor, entropies: Tensor, values: Tensor, learners: list[Tensor]) -> list[Tensor]:
    """Of a loss in which every output and every decision has a weight of its own."""
    generator = torch.Generator().manual_seed(5)
    loss = sum((part * torch.randn(part.shape, generator=generator)).sum() for part in (outputs, log_probs, entropies, values))
    return list(torch.autograd.grad(loss / len(outputs), learners, allow_unused=True))


def _compare_gradients(rollout: Rollout, expected: Expected, rows: int, learners: list[Tensor]) -> None:
    ours = _gradients(rollout.outputs, rollout.log_probs, rollout.entropies, rollout.values, learners)
    tables = [_dense(entries, rows) for entries in (expected.log_probs, expected.entropies, expected.values)]
    theirs = _gradients(torch.stack(expected.outputs), *tables, learners)
    moved = 0
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        if theirs_one is None:
            assert ours_one is None or not ours_one.any()
            continue
        torch.testing.assert_close(ours_one, theirs_one, atol=1e-5, rtol=1e-5)
        moved += bool(theirs_one.any())
    assert moved > 10


@pytest.fixture(params=[False, True], ids=["host", "apart"])
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the host cannot read without waiting are kept track of there too."""
    monkeypatch.setattr(heading, "apart", lambda device: request.param)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("decide", ["route", "greedy", "sample"])
@pytest.mark.parametrize("scope", ["state", "input"])
@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize(("rows", "padded"), [(1, True), (7, False), (64, True)])
def test_routed_forward_is_the_slow_loop(rows: int, padded: bool, allow_exit: bool, scope: str, decide: str) -> None:
    torch.manual_seed(400 + rows)
    stack, policy = _stack(), _policy(allow_exit=allow_exit, scope=scope)
    critic = nn.Sequential(nn.Linear(policy.rules.layout.size, 1), nn.Flatten(0))
    inputs, price = _inputs(rows, padded), torch.rand(rows)
    routes = _routes(rows, allow_exit) if decide == "route" else None
    rollout = routed_forward(stack, PolicyRouter(policy, sample=decide == "sample", route=routes), inputs, price=price, critic=critic)
    assert len(rollout.route.unique(dim=0)) > min(rows - 1, 1)
    followed = rollout.route if decide == "sample" else routes
    expected = _one_row_at_a_time(stack, policy, inputs, price, followed, critic)
    _compare(rollout, expected, rows)
    x = inputs["x"] if isinstance(inputs, dict) else inputs
    _compare_gradients(rollout, expected, rows, [*stack.parameters(), *policy.parameters(), *critic.parameters(), x])


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("allow_exit", [False, True])
def test_routed_forward_with_short_jumps_is_the_slow_loop(allow_exit: bool) -> None:
    torch.manual_seed(2)
    stack, policy, inputs, price = _stack(), _policy(2, allow_exit=allow_exit), _inputs(32, True), torch.rand(32)
    for mode in ("greedy", "sample"):
        rollout = routed_forward(stack, PolicyRouter(policy, sample=mode == "sample"), inputs, price=price)
        expected = _one_row_at_a_time(stack, policy, inputs, price, rollout.route if mode == "sample" else None)
        _compare(rollout, expected, 32)
        assert rollout.jumps[rollout.decided].max() == 2


def test_what_padding_holds_changes_nothing() -> None:
    torch.manual_seed(3)
    stack, policy, inputs = _stack(), _policy(), _inputs(16, True)
    other = {"x": torch.where(inputs["mask"].unsqueeze(-1), inputs["x"], 1e3 * torch.randn_like(inputs["x"])), "mask": inputs["mask"]}
    one, two = routed_forward(stack, policy, inputs), routed_forward(stack, policy, other)
    assert torch.equal(one.route, two.route)
    torch.testing.assert_close(one.outputs, two.outputs, atol=1e-9, rtol=0)
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-6, rtol=0)


def test_sampled_jumps_follow_the_policy() -> None:
    torch.manual_seed(4)
    stack, policy = _stack(), _policy()
    inputs = _inputs(1, False).detach().expand(4000, -1, -1)
    rollout = routed_forward(stack, PolicyRouter(policy, sample=True, generator=torch.Generator().manual_seed(0)), inputs)
    observation = _observe(policy, stack.layers[0](stack.embed(inputs[:1])), 0, FLOPS[0] / sum(FLOPS), 0.0)
    chances = torch.softmax(policy(observation.unsqueeze(0))[0], dim=0)
    share = torch.bincount(rollout.jumps[:, 0], minlength=len(chances)) / 4000
    assert (share - chances).abs().max() < 4 * 0.5 / 4000**0.5


def test_the_same_generator_gives_the_same_routes() -> None:
    torch.manual_seed(5)
    stack, policy, inputs = _stack(), _policy(), _inputs(32, False)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    routes = [routed_forward(stack, PolicyRouter(policy, sample=True, generator=generator), inputs).route for generator in generators]
    assert torch.equal(routes[0], routes[1])
    assert not torch.equal(routes[0], routes[2])


class Spy(nn.Module):
    """Leaves the rows as they are, and remembers which came by; a row's first feature is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls.append(hidden)
        return hidden


@pytest.mark.parametrize("decide", ["route", "greedy", "sample"])
def test_each_layer_is_called_once_with_the_rows_whose_next_layer_it_is(decide: str) -> None:
    torch.manual_seed(6)
    spies = [Spy() for _ in range(DEPTH)]
    stack = ModuleStack(nn.Identity(), spies, nn.Identity(), width=WIDTH, layer_flops=FLOPS)
    hidden = torch.randn(40, WIDTH)
    hidden[:, 0] = torch.arange(40)
    routes = _routes(40, True)
    routes[:, 3] = False
    policy = _policy(allow_exit=True)
    router = PolicyRouter(policy, sample=decide == "sample", route=routes if decide == "route" else None)
    routed_forward(stack, torch.ones(DEPTH, dtype=torch.bool), hidden)  # the first call of each, with a copy, finds out whether it writes into it
    for spy in spies:
        spy.calls.clear()
    rollout = routed_forward(stack, router, hidden)
    if decide == "route":
        assert torch.equal(rollout.route, routes)
    for i, spy in enumerate(spies):
        ran = rollout.route[:, i].nonzero().squeeze(1).tolist()
        assert [call[:, 0].int().tolist() for call in spy.calls] == ([ran] if ran else [])
    assert spies[0].calls[0] is hidden, "all rows: no gather"
    assert torch.equal(rollout.outputs, hidden)


def test_the_reward_to_go_pays_for_what_is_spent_later() -> None:
    torch.manual_seed(7)
    rollout, score, price = routed_forward(_stack(), PolicyRouter(_policy(), sample=True), _inputs(5, False)), torch.rand(5), torch.rand(5)
    to_go = Reward().to_go(score, rollout.spent, price)
    for row in range(5):
        for i in range(DEPTH):
            later = rollout.spent[row, i + 1 :].sum().item()
            assert to_go[row, i].item() == pytest.approx(score[row].item() - price[row].item() * later, abs=1e-6)


def test_jumps_count_the_layers_passed_over() -> None:
    route = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    assert next_layers(route)[route].tolist() == [3, 4, 6, 1, 2, 3, 4, 5, 6]
    rollout = routed_forward(_stack(), route, _inputs(2, False))
    assert rollout.jumps.tolist() == [[2, 0, 0, 0, 1, 0], [0] * 6]
    assert not rollout.decided.any()
    torch.testing.assert_close(rollout.compute, torch.tensor([4 / 16, 1.0]))


def test_one_route_serves_all_rows() -> None:
    torch.manual_seed(8)
    stack, inputs, route = _stack(), _inputs(4, True), torch.tensor([1, 0, 1, 0, 0, 1], dtype=torch.bool)
    one, each = routed_forward(stack, route, inputs), routed_forward(stack, route.expand(4, -1), inputs)
    assert torch.equal(one.outputs, each.outputs)
    assert torch.equal(one.route, each.route)


def test_policy_gradient_does_not_reach_the_network() -> None:
    torch.manual_seed(9)
    stack, policy = _stack(), _policy()
    routed_forward(stack, PolicyRouter(policy, sample=True), _inputs(8, False)).log_probs.sum().backward()
    assert all(parameter.grad is None for parameter in stack.parameters())
    assert policy.fc_in.weight.grad.any()


@pytest.mark.parametrize(
    ("route", "named"),
    [
        ([1, 0, 1], "shape"),
        ([0, 1, 1, 1, 1, 1], "layer 0"),
        ([1, 0, 0, 0, 1, 1], "max_jump is 2"),
        ([1, 1, 1, 1, 0, 0], "allow_exit False"),
        ([1, 1, 1, 1, 1, 0], "allow_exit False"),
    ],
)
def test_routes_that_do_not_fit_are_refused(route: list[int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        routed_forward(_stack(), PolicyRouter(_policy(2), route=torch.tensor(route, dtype=torch.bool)), _inputs(3, False))


class _Knows(Router):
    """Says beforehand that all rows run some layers, and is asked all the same."""

    def __init__(self, layers: list[int], *sent: Tensor | int, looks: bool = True) -> None:
        self.layers, self.sent, self.looks = layers, sent, looks

    def known(self, depth: int) -> list[int]:
        return self.layers

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        return Decision(self.sent[i], flops=1e3)


def test_a_router_that_decides_otherwise_than_it_knew_is_refused() -> None:
    stack, inputs = _stack(), _inputs(3, False)
    with torch.no_grad():
        routed = routed_forward(stack, _Knows([0, 2, 3], 2, 9, 3, DEPTH), inputs)
        assert routed.route.tolist() == [[True, False, True, True, False, False]] * 3
        for sent, words in (((1, 9, 3), "layer 0 to 1, and knew beforehand that they run 2"), ((2, 9, DEPTH), "layer 2 to 6, .* they run 3")):
            with pytest.raises(ValueError, match=rf"_Knows sends all rows from {words}; mend its known\(\) or its decide"):
                routed_forward(stack, _Knows([0, 2, 3], *sent), inputs)


@pytest.mark.parametrize("layers", [[], [1, 2], [0, 3, 2], [0, 2, 2], [-1, 0, 1], [0, DEPTH]])
def test_layers_known_beforehand_ascend_from_the_first(layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"known beforehand are \[.*expected ascending ones of 6, from 0 on; mend known\(\)"):
        routed_forward(_stack(), _Knows(layers, *range(1, DEPTH + 1), looks=False), _inputs(3, False))


def test_a_policy_must_fit_the_stack() -> None:
    other = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH + 1)))
    with pytest.raises(ValueError, match=f"{DEPTH + 1} layers.*the stack has {DEPTH}"):
        routed_forward(_stack(), other, _inputs(2, False))
