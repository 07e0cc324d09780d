import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from agents.options.config import ScheduleConfig


def _parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def test_long_gradients_are_cut_for_network_policy_and_critic_each(tiny_learner):
    learner = tiny_learner()
    modules = (learner.stack, learner.policy, learner.critic)
    loss = sum(1000.0 * parameter.sum() for module in modules for parameter in module.parameters())
    norm = learner.descent.apply(loss)
    assert norm.item() == pytest.approx(1000.0 * math.sqrt(len(_parameters(learner.stack))))
    for module in modules:
        cut = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm()
        assert cut.item() == pytest.approx(learner.config.schedule.max_grad_norm, rel=1e-4)


def test_a_first_step_is_as_long_as_each_rate_says(tiny_learner):
    """Adam's first step goes by its rate against the sign of the gradient, whatever its length; AdamW's weights decay besides."""
    learner = tiny_learner(schedule=ScheduleConfig(batch_size=32, head_rate=3.0, weight_decay=0.1))
    heads = {id(parameter) for parameter in learner.stack.head.parameters()}
    every = [*learner.stack.parameters(), *learner.policy.parameters(), *learner.critic.parameters()]
    before = [parameter.detach().clone() for parameter in every]
    network = {id(parameter): 0.03 if id(parameter) in heads else 0.01 for parameter in learner.stack.parameters()}
    learner.descent.set_rates(0.01, 0.002)
    learner.descent.apply(sum(parameter.sum() for parameter in every))
    assert len(set(network.values())) == 2
    for parameter, weight in zip(every, before, strict=True):
        rate, decay = network.get(id(parameter), 0.002), 0.1 if id(parameter) in network else 0.0
        torch.testing.assert_close(parameter.detach(), weight * (1 - rate * decay) - rate, rtol=1e-4, atol=1e-6)


def test_what_has_no_gradient_stays_as_it_is(tiny_learner):
    learner = tiny_learner()
    learner.descent.apply(learner.policy.fc_in.weight.sum() + _whole(learner.stack))
    network, policy = _parameters(learner.stack), _parameters(learner.policy)
    learner.descent.apply(learner.policy.fc_in.weight.sum())
    assert torch.equal(_parameters(learner.stack), network), "neither moments nor decay move it"
    assert not torch.equal(_parameters(learner.policy), policy)
    assert learner.descent.policy_grad_norm == pytest.approx(math.sqrt(learner.policy.fc_in.weight.numel()))


def _whole(module: torch.nn.Module) -> Tensor:
    return torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


def test_a_state_goes_on_whichever_call_of_the_optimiser_wrote_it(tiny_learner):
    """In one call for all tensors, or one for each: earlier versions wrote the latter."""
    learners = [tiny_learner() for _ in range(2)]
    for learner in learners:
        learner.descent.apply(sum(parameter.sum() for parameter in learner.stack.parameters()))
    state = deepcopy(learners[0].descent.state_dict())
    for group in state["network_optimizer"]["param_groups"]:
        group["foreach"] = None
    learners[1].descent.load_state_dict(state)
    for learner in learners:
        learner.descent.apply(sum(parameter.square().sum() for parameter in learner.stack.parameters()))
    torch.testing.assert_close(*(_parameters(learner.stack) for learner in learners), rtol=0, atol=0)
