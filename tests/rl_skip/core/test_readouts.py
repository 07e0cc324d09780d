"""Leaving early: rows are answered by the readout of their depth, on every way through the stack, and pay for it."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from envs import SkipCore
from envs.options import EnvOptions
from rl_skip import Examples, Feature, FixedRoute, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, PolicyRouter, RoutingState, UserError, View
from rl_skip.core.exits import exit_pass
from rl_skip.core.features import CONFIDENCES, FEATURES, Answer, default_features, find_features, fitted
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import legal_jumps
from rl_skip.core.readouts import Adapter
from rl_skip.core.seal import seal

WIDTH, DEPTH, ROWS, CLASSES = 6, 5, 40, 3
PRICE = 0.2


def make_stack(readouts: bool = True) -> ModuleStack:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    stack = ModuleStack(nn.Linear(4, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[500.0] * DEPTH)
    if readouts:
        stack.add_readouts(torch.randn(2, 4))
        for readout in stack.readouts.each:  # type: ignore[union-attr]
            nn.init.normal_(readout.weight)  # type: ignore[arg-type]
    return stack


def make_policy(stack: ModuleStack, *features: Feature, jumps: bool = False, seed: int = 3) -> JumpPolicy:
    torch.manual_seed(seed)
    assert stack.readouts is not None
    layout = ObservationLayout(WIDTH, DEPTH, features=features or CONFIDENCES, readout_flops=stack.readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=jumps))
    policy.fc_out.weight.data.normal_(std=0.15)
    return policy


def cut(stack: ModuleStack, layers: list[int], x: Tensor) -> Tensor:
    """The layers, one after the other, and the readout of the last, in plain calls."""
    hidden = stack.embed(x)
    for i in layers:
        hidden = stack.layers[i](hidden)
    head = stack.head if layers[-1] == DEPTH - 1 else stack.readouts.each[layers[-1]]  # type: ignore[union-attr]
    outputs: Tensor = head(hidden)
    return outputs


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("features", [(), ("hidden",)], ids=["confidences", "hidden"])
def test_a_row_that_leaves_gets_what_the_cut_network_says_and_pays_for_it(features: tuple[str, ...], jumps: bool) -> None:
    stack, x = make_stack(), torch.randn(ROWS, 4)
    policy = make_policy(stack, *find_features(features), jumps=jumps)
    with torch.no_grad():
        rollout = routed_forward(stack, PolicyRouter(policy, sample=True), x, price=PRICE)
    lasts = set()
    for row in range(ROWS):
        layers = rollout.route[row].nonzero().squeeze(1).tolist()
        lasts.add(layers[-1])
        torch.testing.assert_close(rollout.outputs[row], cut(stack, layers, x[row : row + 1])[0])
        decisions = sum(i < DEPTH - 1 for i in layers)
        readouts = decisions if not features else int(layers[-1] < DEPTH - 1)
        flops = 500 * len(layers) + decisions * (policy.rules.decision_flops - (0 if features else stack.readouts.flops))  # type: ignore[union-attr]
        expected = (flops + readouts * stack.readouts.flops) / (500 * DEPTH)  # type: ignore[union-attr]
        assert rollout.compute[row].item() == pytest.approx(expected, rel=1e-5)
        assert jumps or all(b == a + 1 for a, b in pairwise(layers))
    assert len(lasts) >= 4, "rows must leave at different depths"


def test_a_fixed_route_that_ends_early_is_answered_by_its_readout() -> None:
    stack, x = make_stack(), torch.randn(7, 4)
    with torch.no_grad():
        for k in range(1, DEPTH + 1):
            rollout = routed_forward(stack, FixedRoute(torch.arange(DEPTH) < k), x)
            torch.testing.assert_close(rollout.outputs, cut(stack, list(range(k)), x))


def test_without_readouts_a_row_that_leaves_is_answered_by_the_head_as_before() -> None:
    stack, x = make_stack(readouts=False), torch.randn(7, 4)
    with torch.no_grad():
        rollout = routed_forward(stack, torch.tensor([1, 1, 0, 0, 0]).bool(), x)
        torch.testing.assert_close(rollout.outputs, stack.head(stack.layers[1](stack.layers[0](stack.embed(x)))))


def test_a_policy_without_jumps_goes_on_or_leaves() -> None:
    rules = make_policy(make_stack()).rules
    assert rules.legal.int().tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert (rules.legal <= legal_jumps(DEPTH, DEPTH - 1, True)).all()
    with pytest.raises(UserError, match="without jumps rows must be allowed to leave"):
        JumpRules.reaching(ObservationLayout(WIDTH, DEPTH), jumps=False)
    with pytest.raises(UserError, match="'entropy' looks at what the network would answer, by readouts that it lacks"):
        ObservationLayout(WIDTH, DEPTH, features=find_features(["entropy"]))


def test_features_of_the_answer_are_those_of_a_slow_loop() -> None:
    stack, x, everyone = make_stack(), torch.randn(ROWS, 4), torch.arange(ROWS)
    policy = make_policy(stack)
    with torch.no_grad():
        state = RoutingState(stack, policy.rules, x, PRICE)
        hidden, before = stack.embed(x), None
        for i in range(3):
            rows = state.visit(i)
            assert rows is not None
            seen = state.observe(rows)
            hidden = stack.layers[i](hidden)
            probabilities = torch.softmax(stack.readouts.each[i](hidden), dim=1)  # type: ignore[union-attr]
            for row in range(ROWS):
                p = sorted(probabilities[row].tolist(), reverse=True)
                entropy = -sum(q * torch.tensor(q).log().item() for q in p) / torch.tensor(float(CLASSES)).log().item()
                assert seen[row, 0].item() == pytest.approx(entropy, abs=1e-5)
                assert seen[row, 2].item() == pytest.approx(p[0], abs=1e-6)
                assert seen[row, 4].item() == pytest.approx(p[0] - p[1], abs=1e-6)
            if before is None:
                assert not seen[:, [1, 3, 5, 6]].any() and (seen[:, 7] - 1).abs().max() < 1e-6
            else:
                torch.testing.assert_close(seen[:, [1, 3, 5]], before[0][:, [0, 2, 4]])
                torch.testing.assert_close(seen[:, 6], (probabilities.argmax(1) == before[1].argmax(1)).float())
                torch.testing.assert_close(seen[:, 7], ((hidden - before[2]).norm(dim=1) / hidden.norm(dim=1)).clamp(max=2))
            before = seen, probabilities, hidden
            state.follow(rows, rl_skip.Decision(torch.full_like(rows, i + 1)))
    assert everyone.equal(rows)


def test_the_environment_pays_what_the_routed_forward_says() -> None:
    stack, policy = make_stack(), make_policy(make_stack())
    examples = Examples(torch.randn(ROWS, 4), torch.randint(CLASSES, (ROWS,)))

    def score(outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.softmax(outputs, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

    core = SkipCore(stack, policy.rules, examples, score, num_envs=9, price=PRICE, seed=1)
    observations, returns, episodes, depths = core.reset(), torch.zeros(9), 0, set()
    for _ in range(80):
        drawn = core.drawn.clone()
        with torch.no_grad():
            step = core.step(torch.multinomial(policy(observations).softmax(dim=1), 1).squeeze(1))
        observations = step.observations
        returns += step.rewards
        if step.ends is None:
            continue
        ends = step.ends
        with torch.no_grad():
            rollout = routed_forward(stack, PolicyRouter(policy, route=ends.route), examples.inputs[drawn[ends.rows]], price=PRICE)
        torch.testing.assert_close(ends.compute, rollout.compute)
        torch.testing.assert_close(ends.scores, score(rollout.outputs, ends.labels))
        torch.testing.assert_close(returns[ends.rows], ends.scores - PRICE * ends.compute, atol=1e-5, rtol=1e-5)
        returns[ends.rows] = 0.0
        episodes += len(ends.rows)
        depths |= set(ends.route.sum(dim=1).tolist())
    assert episodes > 50 and len(depths) >= 4


def test_readouts_are_saved_with_the_policy_and_come_back(tmp_path: Path) -> None:
    stack, x = make_stack(), torch.randn(ROWS, 4)
    policy = make_policy(stack)
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=PRICE)
    assert (tmp_path / "policy" / "readouts.safetensors").is_file()
    with torch.no_grad():
        expected = routed_forward(stack, policy, x, price=PRICE)
        model = rl_skip.load(tmp_path / "policy", make_stack(readouts=False))
        assert torch.equal(model(x), expected.outputs)
    assert model.last is not None and torch.equal(model.last.route, expected.route)
    (tmp_path / "policy" / "readouts.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no readouts\.safetensors"):
        rl_skip.load(tmp_path / "policy", make_stack(readouts=False))


def test_readouts_that_the_policy_does_not_know_are_not_dropped_in_silence(tmp_path: Path) -> None:
    stack = make_stack()
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH), allow_exit=True))
    with pytest.raises(ValueError, match=r"readouts of 0 operations, the stack's have \d+; .*readout_flops=stack\.readouts\.flops"):
        rl_skip.save(tmp_path / "policy", policy, stack=stack, price=PRICE)
    assert not (tmp_path / "policy").exists()
    with pytest.raises(ValueError, match="the stack's have 0"):
        rl_skip.save(tmp_path / "policy", make_policy(stack), stack=make_stack(readouts=False), price=PRICE)


def test_environments_see_the_readouts_of_a_stack() -> None:
    stack, examples = make_stack(), Examples(torch.randn(ROWS, 4), torch.randint(CLASSES, (ROWS,)))
    assert stack.readouts is not None
    default = [feature.name for feature in (*CONFIDENCES, Answer())]
    for options, names in (({}, default), ({"features": ["entropy"]}, ["entropy"]), ({"policy_scope": "input"}, ["hidden"])):
        core = EnvOptions(stack=stack, examples=examples, allow_exit=True, **options).core(2)  # type: ignore[arg-type]
        layout = core.rules.layout
        assert [feature.name for feature in layout.features] == names
        assert layout.readout_flops == stack.readouts.flops
        assert core.reset().shape == (2, layout.size)


def test_environments_see_as_many_answers_of_loaded_readouts(tmp_path: Path) -> None:
    stack, examples = make_stack(), Examples(torch.randn(ROWS, 4), torch.randint(CLASSES, (ROWS,)))
    rl_skip.save(tmp_path / "policy", make_policy(stack), stack=stack, price=PRICE)
    model = rl_skip.load(tmp_path / "policy", make_stack(readouts=False))
    flops = model.stack.readouts.flops  # type: ignore[union-attr]
    given = EnvOptions(stack=model.stack, examples=examples, allow_exit=True)
    with pytest.raises(UserError, match="no examples"):
        replace(given, examples=examples.take(slice(0, 0))).core(2)
    for options, features in ((given, (*CONFIDENCES, Answer(CLASSES))), (replace(given, features=["answer"]), (Answer(CLASSES),))):
        core = options.core(2)
        assert core.rules.layout.features == features
        assert core.rules.layout.readout_flops == model.stack.readouts.flops == flops  # type: ignore[union-attr]
    rules = EnvOptions(features=["answer"])._rules(model.stack, examples, model.rules)  # of a run
    assert rules.layout.features == (Answer(CLASSES),)


def test_a_look_at_the_input_alone_sees_no_answer() -> None:
    stack = make_stack()
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=stack.readouts.flops)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="sees nothing of what the network would answer; set --feature hidden"):
        JumpRules.reaching(layout, allow_exit=True, scope="input")


@pytest.mark.parametrize("case", ["none", "large", "asked for"])
def test_a_head_that_cannot_be_copied_is_read_through_adapters(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example, plan = torch.randn(2, 3, 8), {"rank": 2} if case == "asked for" else None
    stack: rl_skip.LayerStack
    if case == "none":
        stack = rl_skip.SkipLayer(8, 2, 4)
    else:
        layers = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)]
        stack = ModuleStack(nn.Linear(8, 8), layers, nn.Sequential(nn.Flatten(), nn.Linear(24, 5)), width=8, example=example)
    monkeypatch.setattr("rl_skip.core.readouts.LARGEST", 3 * (24 * 5 + 5) - (case == "large"))
    readouts = stack.add_readouts(example, plan=plan)
    assert readouts.plan == {"rank": 2 if case == "asked for" else 16}
    x, route = torch.randn(7, 3, 8), torch.tensor([1, 1, 0, 0]).bool()
    with torch.no_grad():
        stack.readouts, whole = None, routed_forward(stack, route, x).outputs
        stack.readouts = readouts
        torch.testing.assert_close(routed_forward(stack, route, x).outputs, whole)  # as the head would, at first
        for parameter in readouts.parameters():
            nn.init.normal_(parameter)
        carry = stack.begin(x)
        for i in range(2):
            stack.run(i, carry, None)
        weights = readouts.each[1].state_dict()
        carry.hidden = carry.hidden + carry.hidden @ weights["down.weight"].T @ weights["up.weight"].T + weights["up.bias"]
        expected = stack.finish(carry)
        torch.testing.assert_close(routed_forward(stack, route, x).outputs, expected)
    assert not torch.allclose(expected, whole)
    if case == "none":
        return
    layout = ObservationLayout(8, 4, features=CONFIDENCES, readout_flops=readouts.flops)
    assert readouts.flops == 2 * 24 * 5 + 3 * 2 * 2 * 8 * readouts.plan["rank"]
    rl_skip.save(tmp_path / "policy", JumpPolicy(JumpRules.reaching(layout, allow_exit=True)), stack=stack, price=PRICE)
    assert isinstance(stack, ModuleStack)
    other = ModuleStack(stack.embed, stack.layers, stack.head, width=8, example=example)
    loaded = rl_skip.load(tmp_path / "policy", other).stack
    with torch.no_grad():
        torch.testing.assert_close(routed_forward(loaded, route, x).outputs, expected)


@pytest.mark.parametrize("plan", [3, {"rank": 0}, {"rank": "4"}, {"modules": []}, {"modules": [3]}, {"modules": "head"}])
def test_what_readouts_are_is_checked_when_it_is_read(plan: object, tmp_path: Path) -> None:
    stack = make_stack()
    rl_skip.save(tmp_path / "policy", make_policy(stack), stack=stack, price=PRICE)
    file = tmp_path / "policy" / "policy.json"
    described = json.loads(file.read_text())
    assert described["readouts"] == {}
    file.write_text(json.dumps(described | {"readouts": plan}))
    seal(file.parent)  # whoever edits a folder on purpose seals it too
    with pytest.raises(UserError, match=r"policy\.json: (readouts|rank|modules)"):
        rl_skip.load(tmp_path / "policy", make_stack(readouts=False))
    file.write_text(json.dumps(described | {"readouts": {"rank": 3}}))
    seal(file.parent)
    with pytest.raises(UserError, match=r"readouts\.safetensors: the weight each\.0\.down\.weight is missing"):
        rl_skip.load(tmp_path / "policy", make_stack(readouts=False))


def test_an_adapter_knows_where_the_channels_are() -> None:
    adapter, images = Adapter(3, 2, channel_dim=1), torch.randn(5, 3, 4, 4)
    nn.init.normal_(adapter.up.weight)
    moved = images.permute(0, 2, 3, 1)
    torch.testing.assert_close(adapter(images).permute(0, 2, 3, 1), moved + moved @ adapter.down.weight.T @ adapter.up.weight.T)


def test_a_look_at_the_answer_carries_no_gradient_to_the_network() -> None:
    stack, policy = make_stack(), make_policy(make_stack())
    rollout = routed_forward(stack, PolicyRouter(policy, sample=True), torch.randn(ROWS, 4))
    rollout.log_probs.sum().backward()
    assert all(parameter.grad is None for parameter in stack.parameters())
    assert policy.fc_in.weight.grad is not None and policy.fc_in.weight.grad.any()
    assert {feature.name for feature in CONFIDENCES} <= set(FEATURES.names())
    assert View is rl_skip.View


class OwnAnswer(Answer):
    """The answer, and nothing of the last look."""

    name = "own_answer"

    def size(self, width: int) -> int:
        return self.classes

    def read(self, view: View) -> Tensor:
        return super().read(view)[:, : self.classes]


def test_the_answer_is_that_of_this_readout_and_of_the_last() -> None:
    stack, x = make_stack(), torch.randn(ROWS, 4)
    policy = make_policy(stack, Answer(CLASSES))
    said = torch.stack([cut(stack, list(range(i + 1)), x).argmax(dim=1) for i in range(DEPTH - 1)], dim=1)  # (B, L - 1)
    ones = nn.functional.one_hot(said, CLASSES).float()
    before = torch.cat([torch.zeros(ROWS, 1, CLASSES), ones[:, :-1]], dim=1)
    observed = exit_pass(stack, policy, x, torch.full((ROWS,), PRICE)).observations
    assert torch.equal(observed[..., : 2 * CLASSES], torch.cat([ones, before], dim=2))
    assert len(said.unique()) == CLASSES
    few = exit_pass(stack, make_policy(stack, Answer(2)), x, torch.full((ROWS,), PRICE)).observations
    assert torch.equal(few[..., :2], ones[..., :2])  # of the third class nothing is told


def test_a_policy_decides_at_first_as_without_the_answer_and_learns_from_it() -> None:
    stack = make_stack()
    layouts = [ObservationLayout(WIDTH, DEPTH, features=features, readout_flops=1.0) for features in (CONFIDENCES, (*CONFIDENCES, Answer(CLASSES)))]
    drawn, policies = [], []
    for layout in layouts:
        torch.manual_seed(5)
        policies.append(JumpPolicy(JumpRules.reaching(layout, allow_exit=True)))
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)  # so that the network beside is trained with the same random numbers
    x, price = torch.randn(ROWS, 4), torch.full((ROWS,), PRICE)
    seen = exit_pass(stack, policies[1], x, price).observations.flatten(0, 1)
    first = sum(layouts[0].sizes[: len(CONFIDENCES)])
    answers = slice(first, first + 2 * CLASSES)
    without = torch.cat([seen[:, : answers.start], seen[:, answers.stop :]], dim=1)
    logits = policies[1](seen)
    torch.testing.assert_close(logits, policies[0](without))
    logits[:, 0].sum().backward()
    weights = policies[1].fc_in.weight
    assert weights.grad is not None and weights.grad[:, answers].any()


def test_the_answer_is_seen_by_default_of_few_classes() -> None:
    for classes, size in ((0, None), (2, 4), (16, 32), (17, None), (77, None)):
        assert [f.size(WIDTH) for f in default_features(False, True, classes) if f.name == "answer"] == ([] if size is None else [size])
    assert [f.size(WIDTH) for f in fitted(find_features(("answer", "entropy")), 3)] == [6, 2]
    assert [f.size(WIDTH) for f in fitted(find_features(("answer",)), 77)] == [32]
    assert default_features(False, False, 3) == default_features(False)
    assert fitted((Answer(2),), 3) == (Answer(2),)  # who asks for two gets two
    own = OwnAnswer()
    assert fitted((own, Answer()), 3) == (own, Answer(3))
    for classes in (0, 17):
        with pytest.raises(UserError, match=f"1 to 16 classes apart, got {classes}"):
            Answer(classes)
    stack = make_stack()
    assert stack.readouts is not None and stack.readouts.classes == CLASSES


def test_a_saved_policy_knows_how_many_answers_it_tells_apart(tmp_path: Path) -> None:
    stack, x = make_stack(), torch.randn(ROWS, 4)
    policy = make_policy(stack, *CONFIDENCES, Answer(CLASSES))
    policy.fc_in.weight.data.normal_()
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=PRICE)
    model = rl_skip.load(tmp_path / "policy", make_stack(readouts=False))
    with torch.no_grad():
        assert torch.equal(model(x), routed_forward(stack, policy, x, price=PRICE).outputs)
    file = tmp_path / "policy" / "policy.json"
    held = json.loads(file.read_text())
    for size in (5, 34, 10**12):
        part = next(part for part in held["observation"]["features"] if part["name"] == "answer")
        part["size"] = size
        file.write_text(json.dumps(held))
        seal(tmp_path / "policy")
        with pytest.raises(UserError, match="answer"):
            rl_skip.load(tmp_path / "policy", make_stack(readouts=False))
