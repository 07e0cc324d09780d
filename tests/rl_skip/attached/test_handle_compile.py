"""A handle whose policy decides by a compiled function, beside the same one without."""

import shutil

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import HuggingFaceStack, JumpPolicy, JumpRules, ObservationLayout, UserError, routed_forward
from rl_skip.core.compiled_decision import compile_policy
from rl_skip.core.features import CONFIDENCES, HiddenState
from rl_skip.core.routing import RoutingState
from tests.rl_skip.huggingface_models import DEPTH, WIDTH, batch, build
from tests.rl_skip.recorded import record

pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compile() asks for a C++ compiler, g++")


@pytest.mark.parametrize(("family", "plan"), [("bert", None), ("bert", {"rank": 3}), ("gpt2", {"rank": 3})])
def test_routes_and_answers_are_those_without(monkeypatch: pytest.MonkeyPatch, family: str, plan: dict[str, int] | None) -> None:
    recorded, model = record(monkeypatch), build(family).eval()
    inputs = {name: tensor for name, tensor in batch(model).items() if name in ("input_ids", "attention_mask")}
    readouts = HuggingFaceStack(model).add_readouts(inputs, plan=plan)
    torch.manual_seed(1)
    for weight in readouts.parameters():
        nn.init.normal_(weight, std=0.3)
    layout = ObservationLayout(WIDTH, DEPTH, features=(HiddenState(), *CONFIDENCES), readout_flops=readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    batches = [{name: tensor[:rows] for name, tensor in inputs.items()} for rows in (len(inputs["input_ids"]), 1, 2)]

    def answers() -> list[tuple[torch.Tensor, torch.Tensor]]:
        with torch.no_grad():
            return [(model(**given).logits, handle.last_routes) for given in batches]

    expected = answers()
    handle.compile()
    for (logits, routes), (as_before, route_before) in zip(answers(), expected, strict=True):
        assert routes.equal(route_before)
        torch.testing.assert_close(logits, as_before, atol=1e-5, rtol=1e-5)
    assert policy.compiled is not None
    assert len(recorded) == 2 == len({kind[5] for kind in policy.compiled.functions})  # for batches with padding, and without
    handle.compile(layers=True)
    assert all(layer._compiled_call_impl is not None for layer in handle.stack.routed)


@pytest.mark.parametrize("plan", [None, {"rank": 3}, {"rank": 3, "pools": True}, {"rank": 3, "pools": True, "groups": 2}])
def test_a_look_is_a_part_of_what_is_compiled_once_the_model_has_shown_what_it_calls(
    monkeypatch: pytest.MonkeyPatch, plan: dict[str, object] | None
) -> None:
    recorded, model = record(monkeypatch), build("bert").eval()
    stack, inputs = HuggingFaceStack(model), batch(model)
    readouts = stack.add_readouts(inputs, plan=plan)
    for weight in (*readouts.parameters(), *model.classifier.parameters()):
        nn.init.normal_(weight, std=0.5)
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    torch.manual_seed(1)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    with torch.no_grad():
        state = RoutingState(stack, policy.rules, inputs, 0.1)
        logits = policy(state.observe(state.visit(0)))
        policy.fc_out.bias[0] -= (logits[:, 0] - logits[:, -1]).median() + 1e-3  # some rows leave at once
        expected = routed_forward(stack, policy, inputs, price=0.1)
        stack._chains.clear()
        compile_policy(policy, stack, layers=False)
        looked: list[nn.Module] = []
        monkeypatch.setattr(stack, "look", lambda readout, *args, look=stack.look: looked.append(readout) or look(readout, *args))
        runs = [routed_forward(stack, policy, inputs, price=0.1)]
        first = len(looked)
        runs.append(routed_forward(stack, policy, inputs, price=0.1))
    assert len(recorded) == 1 and len(looked) == first  # nothing is asked outside of the function any more
    for run in runs:
        assert run.route.equal(expected.route) and len(run.route.unique(dim=0)) > 1
        torch.testing.assert_close(run.outputs, expected.outputs, atol=1e-5, rtol=1e-5)


def test_there_must_be_a_policy() -> None:
    with pytest.raises(UserError, match=r"there is no policy to compile: attach\(model, policy\)"):
        rl_skip.attach(build("bert").eval()).compile()


@pytest.mark.parametrize("plan", [None, {"rank": 3}])
def test_what_was_compiled_while_the_model_learned_is_not_what_decides_when_it_runs(
    monkeypatch: pytest.MonkeyPatch, plan: dict[str, object] | None
) -> None:
    record(monkeypatch)
    model = build("bert").eval()
    stack, inputs = HuggingFaceStack(model), batch(model)
    readouts = stack.add_readouts(inputs, plan=plan)
    for module in (*model.modules(), *readouts.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()
    with torch.no_grad():
        expected = routed_forward(stack, policy, inputs, price=0.1)
        compile_policy(policy, stack, layers=False)
        stack.train()
        for _ in range(2):
            routed_forward(stack, policy, inputs, price=0.1)
        stack.eval()
        for _ in range(2):
            torch.testing.assert_close(routed_forward(stack, policy, inputs, price=0.1).outputs, expected.outputs, atol=1e-5, rtol=1e-5)
