"""The original module against a second one, written from its formulas for one row and one token at a time."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, silu

from rl_skip.core.errors import UserError
from rl_skip.core.features import default_features
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.routers import PolicyRouter
from rl_skip.nets.gated import Body, GatedStack, straight_through
from rl_skip.nets.skip_layer import SkipLayer

WIDTH, HEADS, DEPTH, TOKENS, KEYS = 8, 2, 5, 5, 64


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def _norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape, weights[f"{name}.weight"], weights[f"{name}.bias"])


class Reference:
    """One row of real tokens, each a vector in a list. `w` are the module's parameters by name; `w[...] @ x` is a linear."""

    def __init__(self, stack: GatedStack, body: str) -> None:
        self.w = {**dict(stack.named_parameters()), **dict(stack.named_buffers())}
        self.body = body
        self.inactive = self.far = 0

    def score(self, i: int, x: Tensor) -> Tensor:
        w = self.w
        keys = w[f"gates.{i}.keys"]
        likeness = (keys @ x) / (keys.norm(dim=1) * x.norm())
        recalled = torch.softmax(likeness / math.sqrt(WIDTH), dim=0) @ w[f"gates.{i}.values"]
        looked = _linear(w, f"gates.{i}.mlp.2", silu(_linear(w, f"gates.{i}.mlp.0", x)))
        return _linear(w, f"gates.{i}.join", torch.cat([recalled, looked]))[0]

    def opening(self, i: int, x: Tensor) -> Tensor:
        """0 or 1 forward; backward the score's gradient, where it lies within 1 of the threshold."""
        score, threshold = self.score(i, x), self.w[f"gates.{i}.threshold"]
        near = (score - threshold).abs().item() <= 1
        self.far += not near
        hard = torch.tensor(float(score.item() > threshold.item()))
        return hard + (score - score.detach()) * float(near)

    def update(self, i: int, active: list[Tensor]) -> list[Tensor]:
        """gate(LN x) · body, for the active tokens."""
        w, own = self.w, f"bodies.{i}"
        gates = [torch.sigmoid(_linear(w, f"{own}.gate", _norm(w, f"{own}.norm", x))) for x in active]
        if self.body == "adapter":
            normed = [_norm(w, f"{own}.norm", x) for x in active]
            return [gate * (_linear(w, f"{own}.adapter", x) if i % 2 == 0 else x) for gate, x in zip(gates, normed, strict=True)]
        size, block = WIDTH // HEADS, f"{own}.block"
        projected = [_linear(w, f"{block}.project_in", _norm(w, f"{block}.norm_attention", x)) for x in active]
        queries, keys, values = ([p[part * WIDTH : (part + 1) * WIDTH] for p in projected] for part in range(3))
        updates = []
        for x, gate, query in zip(active, gates, queries, strict=True):
            mixed = []
            for head in range(HEADS):
                of = slice(head * size, (head + 1) * size)
                weights = torch.softmax(torch.stack([query[of] @ key[of] for key in keys]) / math.sqrt(size), dim=0)
                mixed.append(sum(weight * value[of] for weight, value in zip(weights, values, strict=True)))
            attention = _linear(w, f"{block}.project_out", torch.cat(mixed))
            inner = gelu(_linear(w, f"{block}.mlp.0", _norm(w, f"{block}.norm_mlp", x + attention)))
            updates.append(gate * (attention + _linear(w, f"{block}.mlp.2", inner)))
        return updates

    def run(self, i: int, x: list[Tensor], memory: Tensor) -> tuple[list[Tensor], Tensor, int]:
        """The tokens and the memory after layer i, and how many tokens were active."""
        openings = [self.opening(i, token) for token in x]
        chosen = [t for t, opening in enumerate(openings) if opening.item() == 1]
        self.inactive += len(x) - len(chosen)
        x = list(x)
        for t, update in zip(chosen, self.update(i, [x[t] for t in chosen]), strict=True):
            x[t] = x[t] + openings[t] * update
        mean = sum(x) / len(x)
        keep = torch.sigmoid(_linear(self.w, "memory_gate", mean))
        return x, keep * memory + (1 - keep) * mean, len(chosen)

    def jump(self, a: int, x: list[Tensor], origin: list[Tensor], memory: Tensor) -> list[Tensor]:
        if a == 0:
            return x
        weight = self.w["jump_weights"][min(a, 3) - 1]
        return [token + weight * start + (1 - weight) * memory for token, start in zip(x, origin, strict=True)]

    def close(self, x: list[Tensor]) -> Tensor:
        w = self.w
        mlp = [_linear(w, "close_mlp.2", gelu(_linear(w, "close_mlp.0", _norm(w, "close_norm", t)))) for t in x]
        return torch.stack([t + torch.sigmoid(_linear(w, "close_gate", t)) * m for t, m in zip(x, mlp, strict=True)])

    def body_flops(self, i: int, tokens: int) -> int:
        if self.body == "adapter":
            return tokens * (2 * WIDTH + (2 * WIDTH * WIDTH if i % 2 == 0 else 0))
        return tokens * (2 * WIDTH + 2 * 12 * WIDTH * WIDTH) + 4 * tokens * tokens * WIDTH

    def take(self, policy: JumpPolicy, x: Tensor, price: float, route: list[bool] | None) -> tuple[Tensor, list[bool], float, Tensor]:
        """Output (n, D), route, compute and log-probability of one row; a `route` is followed, else the likeliest jump taken."""
        rules, tokens = policy.rules, list(x)
        full = sum(self.body_flops(i, len(tokens)) for i in range(DEPTH))
        gate = len(tokens) * 2 * (WIDTH * KEYS + KEYS + WIDTH * WIDTH // 2 + WIDTH // 2 + 2) + 2 * WIDTH
        decision = 2 * rules.hidden * (2 * WIDTH + 3 + rules.max_jump + 1)
        origin, memory = tokens, self.w["first_memory"].flatten()
        first = (sum(tokens) / len(tokens), memory)
        i, ran, spent, chance = 0, [False] * DEPTH, 0, torch.zeros(())
        while i < DEPTH:
            tokens, memory, active = self.run(i, tokens, memory)
            ran[i], spent = True, spent + self.body_flops(i, active) + gate
            following = i + 1
            reach = sorted({min(i + 1 + a, DEPTH if rules.allow_exit else DEPTH - 1) for a in range(rules.max_jump + 1)} - {i})
            if len(reach) > 1:
                hidden, recalled = first if rules.scope == "input" else (sum(tokens) / len(tokens), memory)
                rest = torch.tensor([i / DEPTH, min(spent / full, 4.0), rules.layout.scale_price(torch.tensor(price))])
                seen = [(one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt() for one in (hidden.detach().float(), recalled.detach().float())]
                observation = torch.cat([*seen, rest])
                spent += decision
                log_p = torch.log_softmax(policy(observation.unsqueeze(0))[0, : len(reach)], dim=0)
                action = int(log_p.argmax()) if route is None else reach.index(next((j for j in range(i + 1, DEPTH) if route[j]), DEPTH))
                chance, following = chance + log_p[action], reach[action]
            tokens = self.jump(following - i - 1, tokens, origin, memory)
            i = following
        return self.close(tokens), ran, spent / full, chance


def _stack(body: str = "adapter") -> GatedStack:
    stack = GatedStack(WIDTH, HEADS, DEPTH, body=body).double()
    _wake_gates(stack)
    stack.first_memory.data.normal_()
    return stack


def _wake_gates(stack: GatedStack) -> None:
    """Gives the gates opinions: some tokens active and some not, some scores near the threshold and some far from it."""
    for gate in stack.gates:
        gate.mlp[2].weight.data.mul_(16)
        gate.join.bias.data.fill_(0.5)


def _policy(**options: object) -> JumpPolicy:
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, features=default_features(GatedStack.has_memory)), hidden=16, **options))
    policy.fc_out.weight.data.normal_(std=2.0)
    return policy


def _padded(rows: int) -> dict[str, Tensor]:
    mask = torch.rand(rows, TOKENS) < 0.7
    mask[torch.arange(rows), torch.randint(TOKENS, (rows,))] = True
    return {"x": torch.randn(rows, TOKENS, WIDTH, dtype=torch.double, requires_grad=True), "mask": mask}


@pytest.mark.parametrize("body", ["adapter", "attention"])
@pytest.mark.parametrize(
    ("rows", "decide", "allow_exit", "scope"),
    [
        (1, "greedy", False, "state"),
        (6, "sample", True, "input"),
        (9, "greedy", True, "state"),
        (9, "route", False, "state"),
        (64, "sample", False, "state"),
    ],
)
def test_routed_forward_is_the_reference(body: str, rows: int, decide: str, allow_exit: bool, scope: str) -> None:
    torch.manual_seed(rows)
    stack, policy, inputs, price = _stack(body), _policy(allow_exit=allow_exit, scope=scope), _padded(rows), torch.rand(rows)
    route = None
    if decide == "route":
        route = torch.rand(rows, DEPTH) < 0.5
        route[:, 0] = route[:, -1] = True
    rollout = routed_forward(stack, PolicyRouter(policy, sample=decide == "sample", route=route), inputs, price=price)
    assert len(rollout.route.unique(dim=0)) > min(rows - 1, 1)

    reference = Reference(stack, body)
    followed = [None] * rows if decide == "greedy" else rollout.route.tolist()
    taken = [reference.take(policy, x[m], price[b].item(), followed[b]) for b, (x, m) in enumerate(zip(inputs["x"], inputs["mask"], strict=True))]
    outputs, routes, compute, chances = zip(*taken, strict=True)
    assert rollout.route.tolist() == list(routes)
    torch.testing.assert_close(rollout.outputs[inputs["mask"]], torch.cat(outputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.compute, torch.tensor(compute), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.log_probs.sum(dim=1), torch.stack(chances), atol=1e-5, rtol=1e-5)
    assert reference.inactive > 0 and (rows < 64 or reference.far > 0)

    learners = [*stack.parameters(), *policy.parameters(), inputs["x"]]
    weight, chance_weight = torch.randn_like(torch.cat(outputs)), torch.randn(rows)

    def gradients(out: Tensor, chance: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(((out * weight).sum() + (chance * chance_weight).sum()) / rows, learners, allow_unused=True))

    ours = gradients(rollout.outputs[inputs["mask"]], rollout.log_probs.sum(dim=1))
    theirs = gradients(torch.cat(outputs), torch.stack(chances))
    gate_names = {f"gates.{i}.{part}" for i in range(DEPTH) for part in ("keys", "values", "mlp.0.weight", "join.weight")}
    moved_gates = 0
    for (name, _), one, other in zip([*stack.named_parameters(), *policy.named_parameters(), ("x", None)], ours, theirs, strict=True):
        one, other = (torch.zeros(()) if gradient is None else gradient for gradient in (one, other))
        if one.any() or other.any():
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=lambda told, name=name: f"{name}: {told}")
            moved_gates += name in gate_names
    assert moved_gates >= 4


@pytest.mark.parametrize("body", ["adapter", "attention"])
def test_skip_layer_is_the_reference(body: str) -> None:
    torch.manual_seed(0)
    jmp = SkipLayer(WIDTH, HEADS, DEPTH, body=body).double().eval()
    jmp.policy.float()
    jmp.policy.fc_out.weight.data.normal_(std=2.0)
    _wake_gates(jmp)
    x = torch.randn(6, TOKENS, WIDTH, dtype=torch.double)
    y = jmp(x)
    reference = Reference(jmp, body)
    for row in range(6):
        output, route, compute, _ = reference.take(jmp.policy, x[row], jmp.price, None)
        torch.testing.assert_close(y[row], output, atol=1e-5, rtol=1e-5)
        assert jmp.logs["route"][row].tolist() == route
        assert jmp.logs["compute"][row].item() == pytest.approx(compute, abs=1e-5)
    assert jmp.logs["jumps"].max() > 0


def test_straight_through_is_a_step_forward_and_a_clipped_identity_backward() -> None:
    score = torch.tensor([-5.0, -0.51, -0.49, 0.49, 0.5, 0.51, 1.49, 1.51, 9.0], requires_grad=True)
    opened = straight_through(score, torch.tensor(0.5))
    assert opened.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    opened.backward(torch.arange(1.0, 10.0))
    assert score.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]


@pytest.mark.parametrize("body", ["adapter", "attention"])
def test_what_padding_holds_and_how_long_it_is_change_nothing(body: str) -> None:
    torch.manual_seed(1)
    stack, policy, inputs = _stack(body), _policy(), _padded(12)
    x, mask = inputs["x"].detach(), inputs["mask"]
    noise = torch.where(mask.unsqueeze(-1), x, 1e3 * torch.randn_like(x))
    longer = {"x": torch.cat([noise, torch.randn_like(x)], dim=1), "mask": torch.cat([mask, torch.zeros_like(mask)], dim=1)}
    one, two = routed_forward(stack, policy, inputs), routed_forward(stack, policy, longer)
    assert torch.equal(one.route, two.route)
    torch.testing.assert_close(one.outputs[mask], two.outputs[:, :TOKENS][mask], atol=1e-9, rtol=0)
    torch.testing.assert_close(one.log_probs, two.log_probs, atol=1e-6, rtol=0)  # and so the memory, which the policy sees
    torch.testing.assert_close(one.compute, two.compute, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.long])
def test_a_mask_may_be_of_any_kind(kind: torch.dtype) -> None:
    torch.manual_seed(2)
    jmp = SkipLayer(WIDTH, HEADS, DEPTH, body="attention").eval()
    x, mask = torch.randn(3, TOKENS, WIDTH), torch.arange(TOKENS) < torch.tensor([[2], [5], [1]])
    torch.testing.assert_close(jmp(x, mask.to(kind)), jmp(x, mask))


@pytest.mark.parametrize("body", ["adapter", "attention"])
def test_a_row_without_any_active_token_stays_finite(body: str) -> None:
    torch.manual_seed(3)
    stack = GatedStack(WIDTH, HEADS, DEPTH, body=body)
    for gate in stack.gates[:2]:
        gate.threshold.fill_(1e6)
    x, mask = torch.randn(4, TOKENS, WIDTH, requires_grad=True), torch.ones(4, TOKENS, dtype=torch.bool)
    mask[1] = False
    rollout = routed_forward(stack, torch.ones(DEPTH, dtype=torch.bool), {"x": x, "mask": mask})
    rollout.outputs.sum().backward()
    assert rollout.outputs.isfinite().all() and rollout.compute.isfinite().all() and x.grad.isfinite().all()


class CountingBody(Body):
    """Adds one, and remembers how many tokens it was asked for."""

    def __init__(self, per_token: bool) -> None:
        super().__init__()
        self.per_token, self.tokens = per_token, []

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        self.tokens.append(hidden.shape[0] * hidden.shape[1] if mask is None else int(mask.sum()))
        self.longest = hidden.shape[1]
        return torch.ones_like(hidden)

    def flops(self, tokens: Tensor) -> Tensor:
        return tokens * 1e6


@pytest.mark.parametrize("per_token", [True, False])
def test_inactive_tokens_reach_no_body_and_cost_nothing(per_token: bool) -> None:
    torch.manual_seed(4)
    stack = GatedStack(WIDTH, HEADS, DEPTH, body=lambda _i: CountingBody(per_token))
    _wake_gates(stack)
    x = torch.randn(10, 40, WIDTH)
    active = stack.gates[0](x).bool()
    only_first = torch.arange(DEPTH) == 0
    carry = stack.begin(x)
    flops = stack.run(0, carry, None) * carry.full_flops
    body = stack.bodies[0]
    assert 0 < active.sum() < active.numel()
    assert body.tokens == [int(active.sum())]
    assert per_token or body.longest == active.sum(dim=1).max()
    torch.testing.assert_close(carry.hidden, x + active.unsqueeze(-1).float())
    gates = 40 * stack.gates[0].flops + 2 * WIDTH
    torch.testing.assert_close(flops, active.sum(dim=1) * 1e6 + gates)
    assert routed_forward(stack, only_first, x).compute.max() < 1 / DEPTH + 0.01


def test_without_gates_and_mixing_a_jump_changes_nothing_but_the_layers_run() -> None:
    torch.manual_seed(5)
    stack = GatedStack(WIDTH, HEADS, DEPTH, body="attention", memory_gate=False, jump_mixing=False)
    x, route = torch.randn(3, TOKENS, WIDTH), torch.tensor([1, 0, 0, 1, 0], dtype=torch.bool)
    rollout = routed_forward(stack, route, x)
    hidden = x
    for i in (0, 3):
        hidden = hidden + stack.bodies[i](hidden, None)
    gate = torch.sigmoid(stack.close_gate(hidden))
    torch.testing.assert_close(rollout.outputs, hidden + gate * stack.close_mlp(stack.close_norm(hidden)))
    assert rollout.compute.tolist() == pytest.approx([2 / DEPTH] * 3, abs=0.01)


def _thresholds(jmp: SkipLayer) -> list[float]:
    return [gate.threshold.item() for gate in jmp.gates]


def test_thresholds_fall_with_a_rising_loss_and_rise_with_a_falling_one() -> None:
    jmp = SkipLayer(WIDTH, HEADS, DEPTH)
    jmp.update_threshold(1.0)
    assert _thresholds(jmp) == [0.5] * DEPTH, "a first loss has nothing to be compared with"
    for step in range(1, 11):
        jmp.update_threshold(1.0 + step)
        assert _thresholds(jmp) == pytest.approx([0.5 - 0.01 * step] * DEPTH, abs=1e-6)
    for step in range(200):
        jmp.update_threshold(11.0 + step, lr=0.05)
    assert _thresholds(jmp) == [0.0] * DEPTH

    jmp = SkipLayer(WIDTH, HEADS, DEPTH)
    for step in range(11):
        jmp.update_threshold(torch.tensor(5.0 - 0.1 * step))
    assert _thresholds(jmp) == pytest.approx([0.6] * DEPTH, abs=1e-6)
    for step in range(200):
        jmp.update_threshold(-float(step), lr=0.05)
    assert _thresholds(jmp) == [1.0] * DEPTH


def test_a_lower_threshold_activates_more_tokens() -> None:
    torch.manual_seed(6)
    stack, x = _stack(), torch.randn(50, TOKENS, WIDTH, dtype=torch.double)
    active = []
    for threshold in (0.0, 0.5, 1.0):
        stack.gates[0].threshold.fill_(threshold)
        active.append(stack.gates[0](x).sum().item())
    assert active[0] > active[1] > active[2] > 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_thresholds_refuse_a_loss_that_is_no_number(loss: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        SkipLayer(WIDTH, HEADS, DEPTH).update_threshold(loss)


def test_policy_loss_needs_a_pass_in_training_mode() -> None:
    jmp = SkipLayer(WIDTH, HEADS, DEPTH)
    with pytest.raises(ValueError, match="training mode"):
        jmp.policy_loss(torch.zeros(2))
    jmp(torch.randn(2, TOKENS, WIDTH))
    jmp.eval()
    jmp(torch.randn(2, TOKENS, WIDTH))
    with pytest.raises(ValueError, match="training mode"):
        jmp.policy_loss(torch.zeros(2))


def test_policy_loss_moves_the_policy_alone() -> None:
    torch.manual_seed(7)
    jmp = SkipLayer(WIDTH, HEADS, DEPTH)
    jmp(torch.randn(16, TOKENS, WIDTH))
    jmp.policy_loss(torch.rand(16)).backward()
    moved = {name for name, parameter in jmp.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved and all(name.startswith("policy.") for name in moved)
    assert {"policy.fc_in.weight", "policy.fc_out.weight", "policy.layer_bias.weight"} <= moved


def test_policy_loss_is_reinforce_with_reward_to_go() -> None:
    torch.manual_seed(8)
    jmp, score = SkipLayer(WIDTH, HEADS, DEPTH, price=0.3), torch.rand(4)
    jmp(torch.randn(4, TOKENS, WIDTH))
    rollout: Rollout = jmp._rollout
    expected = 0.0
    for i in range(DEPTH):
        rows = [b for b in range(4) if rollout.decided[b, i]]
        to_go = {b: score[b].item() - 0.3 * rollout.spent[b, i + 1 :].sum().item() for b in rows}
        for b in rows:
            advantage = to_go[b] - sum(to_go.values()) / len(rows)
            expected -= (rollout.log_probs[b, i].item() * advantage + 0.05 * rollout.entropies[b, i].item()) / 4
    assert jmp.policy_loss(score, entropy=0.05).item() == pytest.approx(expected, abs=1e-5)


def test_the_policy_learns_a_bandit() -> None:
    """Layer 2 is worth running where the first feature is positive, and worth skipping where it is negative."""
    torch.manual_seed(9)
    jmp = SkipLayer(WIDTH, HEADS, 4, price=0.0)
    optimizer = torch.optim.Adam(jmp.policy.parameters(), lr=0.01)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(rows, 3, WIDTH) * 0.1
        sign = (torch.rand(rows) < 0.5).float() * 2 - 1
        x[..., 0] += 2 * sign.unsqueeze(1)
        return x, sign > 0

    def score(useful: Tensor) -> Tensor:
        return (jmp.logs["route"][:, 2] == useful).float()

    x, useful = batch(500)
    jmp(x)
    assert score(useful).mean() < 0.75
    for _ in range(90):
        x, useful = batch(64)
        jmp(x)
        optimizer.zero_grad()
        jmp.policy_loss(score(useful)).backward()
        optimizer.step()
    jmp.eval()
    x, useful = batch(500)
    jmp(x)
    assert score(useful).mean() > 0.97


def test_a_price_teaches_the_policy_to_skip() -> None:
    torch.manual_seed(10)
    jmp = SkipLayer(WIDTH, HEADS, 6, price=1.0, max_jump=None, body="attention")
    optimizer = torch.optim.Adam(jmp.policy.parameters(), lr=0.01)
    for _ in range(60):
        jmp(torch.randn(32, TOKENS, WIDTH))
        optimizer.zero_grad()
        jmp.policy_loss(torch.ones(32)).backward()
        optimizer.step()
    jmp.eval()
    jmp(torch.randn(100, TOKENS, WIDTH))
    assert jmp.logs["route"].sum(dim=1).float().mean() < 2.2  # the first and the last layer, which no jump avoids


def test_drops_into_a_model_and_trains_with_it() -> None:
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(4, WIDTH), SkipLayer(dims=WIDTH, head=HEADS, layer=4), nn.Linear(WIDTH, 1))
    x = torch.randn(64, TOKENS, 4)
    target = x.sum(dim=-1, keepdim=True)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(40):
        error = (model(x) - target).square().mean(dim=(1, 2))
        loss = error.mean() + model[1].policy_loss(score=1 / (1 + error))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(error.mean().item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_can_be_copied_and_saved_after_a_training_pass(tmp_path) -> None:
    torch.manual_seed(12)
    jmp, x = SkipLayer(WIDTH, HEADS, DEPTH), torch.randn(3, TOKENS, WIDTH)
    jmp(x)
    torch.save(jmp, tmp_path / "module.pt")
    expected = jmp.eval()(x)
    for other in (copy.deepcopy(jmp), torch.load(tmp_path / "module.pt", weights_only=False).eval()):
        assert torch.equal(other(x), expected)


def test_evaluation_is_repeatable_and_training_samples() -> None:
    torch.manual_seed(13)
    jmp, x = SkipLayer(WIDTH, HEADS, DEPTH), torch.randn(64, TOKENS, WIDTH)
    routes = []
    for training in (True, True, False, False):
        jmp.train(training)(x)
        routes.append(jmp.logs["route"])
    assert not torch.equal(routes[0], routes[1])
    assert torch.equal(routes[2], routes[3])


def test_three_layers_shorten_the_default_jump_and_fewer_are_refused() -> None:
    assert SkipLayer(WIDTH, HEADS, 3).policy.rules.max_jump == 1
    assert SkipLayer(WIDTH, HEADS, 6).policy.rules.max_jump == 2
    with pytest.raises(UserError, match="nothing to decide"):
        SkipLayer(WIDTH, HEADS, 2)


def test_a_score_of_another_shape_and_an_unknown_body_are_refused() -> None:
    jmp = SkipLayer(16, 2, 4)
    jmp(torch.randn(3, 5, 16))
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(3, 1\)"):
        jmp.policy_loss(torch.rand(3, 1))
    with pytest.raises(ValueError, match="adapter, attention"):
        SkipLayer(16, 2, 4, body="foo")
