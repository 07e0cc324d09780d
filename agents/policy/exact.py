"""The exact gradient of when to leave: one pass through all layers shows what every exit earns, so nothing has to be sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["EveryExit", "ExitPass", "Leaving", "exit_pass", "leaving"]


class EveryExit(Router):
    """All rows run all layers; after each but the last the policy observes, and the readout of that depth answers.

    Args:
        policy: whose observations are made, and whose decisions are charged.
    """

    def __init__(self, policy: JumpPolicy) -> None:
        self.rules = policy.rules
        self.observations: list[Tensor] = []
        """(B, S) for each layer but the last."""
        self.answers: list[Tensor] = []
        """(B, ...) for each layer but the last."""
        self.leaving: list[Tensor] = []
        """(B,) for each layer but the last, the relative compute of being answered there, beyond that of the decision."""

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        assert self.rules is not None
        following = torch.full_like(rows, i + 1)
        if i == state.stack.depth - 1:
            return Decision(following)
        self.observations.append(state.observe(rows))
        self.answers.append(state.answer(rows))
        assert state.stack.readouts is not None
        flops = state.stack.answer_flops(state.stack.readouts, state.carry, rows, self.rules.layout.reads)
        self.leaving.append(state.stack.costs.part("readout", flops / state.carry.full_flops))
        return Decision(following, self.rules.decision_flops)


@dataclass(frozen=True)
class ExitPass:
    """What one pass through all layers shows of leaving after each of them."""

    answers: list[Tensor]
    """For each layer (B, ...), what the network answers where a row leaves after it."""
    observations: Tensor
    """(B, L - 1, S), what the policy sees after each layer but the last."""
    compute: Tensor
    """(B, L), the relative compute of leaving after each layer, decisions and readouts included."""


def exit_pass(stack: LayerStack, policy: JumpPolicy, inputs: Inputs, price: Tensor) -> ExitPass:
    """Runs all layers on B rows, with every readout.

    Args:
        stack: with readouts.
        policy: who will decide.
        inputs: of the rows.
        price: (B,), which the observations show.
    """
    router = EveryExit(policy)
    rollout = routed_forward(stack, router, inputs, price=price)
    compute = rollout.spent.cumsum(dim=1)  # (B, L)
    compute[:, :-1] += torch.stack(router.leaving, dim=1)
    return ExitPass([*router.answers, rollout.outputs], torch.stack(router.observations, dim=1), compute)


@dataclass(frozen=True)
class Leaving:
    """How likely rows are to leave after each layer."""

    probability: Tensor
    """(B, L), p_k = q_k · Π_{j<k} (1 − q_j), with q_k the policy's probability to leave after layer k; sums to 1."""
    entropy: Tensor
    """(B,), the entropy of the decisions, each weighted by the chance to come to it."""
    decisions: Tensor
    """(B,), how many decisions a row is expected to take."""


def leaving(policy: JumpPolicy, observations: Tensor) -> Leaving:
    """The distribution over exits of a policy without jumps, with its gradient.

    The gradient of the expected reward J = Σ_k p_k · reward_k is exact: an all-action policy gradient of optimal stopping
    (Venkata & Bhattacharyya 2023, "Deep Recurrent Optimal Stopping").

    Args:
        policy: which goes on or leaves.
        observations: (B, L - 1, S), after each layer but the last.
    """
    B, K, S = observations.shape
    log_probs = torch.log_softmax(policy(observations.reshape(B * K, S)), dim=1).view(B, K, -1)  # (B, L - 1, J + 1)
    stay = log_probs[..., 0]  # (B, L - 1)
    place = (K - torch.arange(K, device=stay.device)).expand(B, K).unsqueeze(2)  # leaving after layer i is a jump of L - 1 - i
    leave = log_probs.gather(2, place).squeeze(2)  # (B, L - 1)
    reached = torch.cat([torch.zeros_like(stay[:, :1]), stay.cumsum(dim=1)], dim=1)  # (B, L), log-probability to come to each layer
    probability = (reached + torch.cat([leave, torch.zeros_like(leave[:, :1])], dim=1)).exp()
    chance = reached[:, :-1].exp().detach()
    entropy = -(stay.exp() * stay + leave.exp() * leave)  # (B, L - 1)
    return Leaving(probability, (chance * entropy).sum(dim=1), chance.sum(dim=1))
