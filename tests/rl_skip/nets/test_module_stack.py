"""Modules that write into what they are given, which rows on other routes still need."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from rl_skip import JumpPolicy, JumpRules, ModuleStack, ObservationLayout, routed_forward
from rl_skip.core.exits import exit_pass
from rl_skip.core.features import default_features
from rl_skip.core.random_routes import random_routes

DEPTH, WIDTH, ROWS = 5, 8, 24


def a_stack(tokens: tuple[int, ...], written: str) -> tuple[ModuleStack, Tensor]:
    """A stack with readouts whose layers or whose head write into their input, or none; with the same weights whichever."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.ELU(inplace=written == "layers"), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH)]
    head = nn.Sequential(nn.ELU(inplace=written == "head"), nn.Flatten(), nn.Linear(WIDTH * (tokens or (1,))[0], 4))
    x = torch.randn(ROWS, *tokens, 3)
    stack = ModuleStack(nn.Linear(3, WIDTH), layers, head, width=WIDTH, example=x[:1])
    stack.add_readouts(x[:1])
    return stack, x


def a_policy(stack: ModuleStack) -> JumpPolicy:
    assert stack.readouts is not None
    features = default_features(True, has_readouts=True)
    torch.manual_seed(1)
    return JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, features=features, readout_flops=stack.readouts.flops), allow_exit=True))


@pytest.mark.parametrize("inference", [False, True], ids=["counted", "not counted"])
@pytest.mark.parametrize("tokens", [(), (5,)], ids=["rows", "tokens"])
@pytest.mark.parametrize("written", ["layers", "head"])
def test_modules_that_write_into_their_input_do_as_those_that_do_not(written: str, tokens: tuple[int, ...], inference: bool) -> None:
    (stack, x), (expected, _) = a_stack(tokens, written), a_stack(tokens, "none")
    routes = random_routes(torch.rand(ROWS, DEPTH), torch.full((ROWS, 1), 0.5), a_policy(stack).rules)
    given = x.clone()
    with torch.inference_mode() if inference else torch.no_grad():
        for way in (routes, torch.ones(DEPTH, dtype=torch.bool)):
            torch.testing.assert_close(routed_forward(stack.eval(), way, x).outputs, routed_forward(expected.eval(), way, x).outputs)
        seen, wanted = (exit_pass(network, a_policy(network), x, torch.full((ROWS,), 0.1)) for network in (stack, expected))
    torch.testing.assert_close(seen.answers, wanted.answers)
    torch.testing.assert_close(seen.observations, wanted.observations)
    assert torch.equal(x, given)


@pytest.mark.parametrize("written", ["layers", "head"])
def test_they_learn_at_every_exit(written: str) -> None:
    gradients = []
    for kind in (written, "none"):
        stack, x = a_stack((5,), kind)
        exit_pass(stack, a_policy(stack), x, torch.full((ROWS,), 0.1)).answers.square().sum().backward()
        gradients.append([parameter.grad for parameter in stack.parameters()])
    torch.testing.assert_close(*gradients)


def test_what_was_found_out_survives_copies() -> None:
    stack, x = a_stack((5,), "head")
    first = routed_forward(stack, torch.ones(DEPTH, dtype=torch.bool), x).outputs
    for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        torch.testing.assert_close(routed_forward(other, torch.ones(DEPTH, dtype=torch.bool), x).outputs, first)


def test_what_first_saw_nothing_to_change_still_writes() -> None:
    """A rectifier leaves positive numbers as they are."""
    layers = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)) for _ in range(2)]
    stack = ModuleStack(nn.Identity(), layers, nn.Linear(WIDTH, 4), width=WIDTH, layer_flops=[1.0, 1.0])
    with torch.inference_mode():
        for hidden in (torch.rand(3, WIDTH), -torch.rand(3, WIDTH)):
            before, carry = hidden.clone(), stack.begin(hidden)
            stack.run(0, carry, None)
            assert hidden.equal(before)


def test_a_drop_out_in_a_mode_of_its_own_gets_a_copy() -> None:
    layers = [nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(WIDTH, WIDTH)) for _ in range(2)]
    stack = ModuleStack(nn.Identity(), layers, nn.Linear(WIDTH, 4), width=WIDTH, layer_flops=[1.0, 1.0]).eval()
    hidden = torch.ones(3, WIDTH)
    for mode in (False, True):
        layers[0][0].train(mode)
        stack.run(0, stack.begin(hidden), None)
        assert hidden.equal(torch.ones(3, WIDTH))


def test_recorded_readouts_leave_the_hidden_state_as_it_is() -> None:
    class AnswersTwice(nn.Module):
        def __init__(self, stack: ModuleStack) -> None:
            super().__init__()
            self.stack = stack

        def forward(self, x: Tensor) -> Tensor:
            carry = self.stack.begin(x)
            early = self.stack.read(self.stack.head, carry, None)
            self.stack.run(0, carry, None)
            return torch.cat([early, self.stack.finish(carry)])

    stack, x = a_stack((), "head")
    answers = AnswersTwice(stack.eval())
    with torch.no_grad():
        expected = AnswersTwice(a_stack((), "none")[0].eval())(x)
        torch.testing.assert_close(torch.export.export(answers, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(answers, backend="eager")(x), expected)
