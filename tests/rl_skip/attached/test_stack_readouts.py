"""Readouts of a model from transformers as a stack: environments see and pay what the routed forward says, and losses reach every readout."""

import pytest
import torch
from torch import Tensor

from envs import SkipCore
from rl_skip import Examples, HuggingFaceStack, PolicyRouter
from rl_skip.core.forward import routed_forward
from tests.rl_skip.attached.test_attach_readouts import KINDS, PRICE, with_readouts
from tests.rl_skip.huggingface_models import DEPTH, batch

pytest.importorskip("transformers")


def score(outputs: Tensor, labels: Tensor) -> Tensor:
    """Of classes, and of the last token of a language model."""
    outputs = outputs[:, -1] if outputs.dim() == 3 else outputs
    return outputs.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "llama", "wav2vec2"])
def test_an_environment_shows_and_pays_what_the_routed_forward_says(family: str, kind: str) -> None:
    model, readouts, policy = with_readouts(family, kind)
    stack = HuggingFaceStack(model)
    stack.readouts = readouts
    torch.manual_seed(2)
    if family == "wav2vec2":
        inputs = {"input_values": torch.randn(20, 200)}
    else:
        mask = torch.arange(7) < torch.randint(3, 8, (20, 1))
        mask = mask.flip(1) if family == "llama" else mask
        inputs = {"input_ids": torch.randint(3, 60, (20, 7)) * mask, "attention_mask": mask.long()}
    examples = Examples(inputs, torch.randint(2, (20,)))
    core = SkipCore(stack, policy.rules, examples, score, num_envs=5, price=PRICE, seed=1)
    observations, returns, depths = core.reset(), torch.zeros(5), set()
    for _ in range(24):
        drawn = core.drawn.clone()
        with torch.no_grad():
            legal = policy.rules.legal[policy.rules.layout.layer_of(observations)]  # (5, J + 1)
            actions = torch.where(torch.rand(5) < 0.6, 0, (legal * torch.arange(legal.shape[1])).amax(dim=1))
            step = core.step(actions)
        observations = step.observations
        returns += step.rewards
        if step.ends is None:
            continue
        ends = step.ends
        chosen = {name: x[drawn[ends.rows]] for name, x in inputs.items()}
        with torch.no_grad():
            rollout = routed_forward(stack, PolicyRouter(policy, route=ends.route), chosen, price=PRICE)
        torch.testing.assert_close(ends.compute, rollout.compute)
        torch.testing.assert_close(ends.scores, score(rollout.outputs, ends.labels), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(returns[ends.rows], ends.scores - PRICE * ends.compute, atol=1e-5, rtol=1e-5)
        returns[ends.rows] = 0.0
        depths |= set(ends.route.sum(dim=1).tolist())
    assert len(depths) >= 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "modernbert", "vit", "wav2vec2", "llama"])
def test_a_loss_at_an_exit_teaches_its_readout_and_the_layers_before_it(family: str, kind: str) -> None:
    model, readouts, _ = with_readouts(family, kind)
    stack = HuggingFaceStack(model)
    stack.readouts = readouts
    routed_forward(stack, torch.arange(DEPTH) < 3, batch(model)).outputs.square().mean().backward()
    for i, readout in enumerate(readouts.each):
        assert all((parameter.grad is not None and bool(parameter.grad.any())) == (i == 2) for parameter in readout.parameters())
    for i, layer in enumerate(stack.routed):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters()) == (i < 3)
