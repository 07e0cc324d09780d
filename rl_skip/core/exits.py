"""One pass of all rows through all layers: what a policy sees, and what the network answers, after each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_skip.core.features import View
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["EveryExit", "ExitPass", "exit_pass", "left_at", "passed_by"]


class _Looks(View):
    """What there is to see of B rows after each of K layers, which all of them ran: K · B looks, layer by layer.

    Reading a feature of all at once gives what reading it after one layer and the next does, in fewer and larger operations.

    Args:
        views: of the K layers, in order, of all rows; what of them changes with the layer has been looked at.
        answers: (K, B, ...), what the readouts said.
    """

    def __init__(self, views: list[View], answers: Tensor) -> None:
        super().__init__(views[0].state, torch.cat([view.rows for view in views]))
        self.views, self.answers = views, answers

    @cached_property
    def hidden(self) -> Tensor:
        return torch.cat([view.hidden for view in self.views])

    @cached_property
    def memory(self) -> Tensor | None:
        memories = [view.memory for view in self.views]
        return None if memories[0] is None else torch.cat(memories)  # type: ignore[arg-type]

    @cached_property
    def position(self) -> Tensor:
        K, B = self.answers.shape[:2]
        return torch.arange(K, device=self.rows.device).unsqueeze(1).expand(K, B).flatten()

    @cached_property
    def compute(self) -> Tensor:
        return torch.cat([view.compute for view in self.views])

    @cached_property
    def probabilities(self) -> Tensor:
        return torch.softmax(self.answers.detach().flatten(0, 1).float(), dim=-1)

    def previous(self, name: str, value: Tensor) -> Tensor:
        return pad(value, (0, 0, self.answers.shape[1], 0))[: len(value)]  # none before the first layer


class EveryExit(Router):
    """All rows run all layers; after each but the last the policy observes, and the readout of that depth answers.

    Args:
        policy: whose observations are made, and whose decisions are charged.
    """

    looks = True

    def __init__(self, policy: JumpPolicy) -> None:
        self.rules = policy.rules
        self.flops = policy.rules.decision_flops
        self.at_once = self.rules.scope == "state" and all(feature.at_once for feature in self.rules.layout.parts)
        self.views: list[View] = []
        self.observed: list[Tensor] = []
        self.said: list[Tensor] = []
        self.answers: list[Tensor] = []
        """(B, ...) for each layer but the last."""
        self.leaving: list[Tensor | float] = []
        """For each layer but the last, see `_answering`."""

    def known(self, depth: int) -> range | None:
        return range(depth) if type(self) is EveryExit else None  # a subclass may decide otherwise

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        assert self.rules is not None
        if i == state.stack.depth - 1:
            return Decision(i + 1)
        self.answers.append(state.answer(rows))
        self.leaving.append(self._answering(state, rows))
        if self.at_once:
            self.said.append(state.said(rows))
            view = View(state, rows)
            with torch.no_grad():
                _ = view.hidden, view.memory, view.compute  # which are other ones after the next layer
            self.views.append(view)
        else:
            self.observed.append(state.observe(rows))
        return Decision(i + 1, self.flops)

    def _answering(self, state: RoutingState, rows: Tensor) -> Tensor | float:
        """(B,) or one for all, the relative compute of being answered, beyond that of the decision."""
        stack, carry = state.stack, state.carry
        assert self.rules is not None and stack.readouts is not None
        flops = stack.answer_flops(stack.readouts, carry, rows, self.rules.layout.reads)
        return flops if isinstance(flops, float) and flops == 0 else stack.costs.part("readout", flops / carry.full_flops)

    def observations(self) -> Tensor:
        """(B, L - 1, S), after each layer but the last."""
        assert self.rules is not None
        if not self.at_once:
            return torch.stack(self.observed, dim=1)
        with torch.no_grad():
            said = torch.stack(self.said)  # (L - 1, B, ...)
            return self.rules.layout.read(_Looks(self.views, said)).view(*said.shape[:2], -1).transpose(0, 1)

    def compute(self, spent: Tensor) -> Tensor:
        """(B, L), the relative compute of leaving after each layer, of what was spent at each, (B, L)."""
        compute = spent.cumsum(dim=1)
        if any(isinstance(spending, Tensor) for spending in self.leaving):
            compute[:, :-1] += torch.stack(self.leaving, dim=1)  # type: ignore[arg-type]
        return compute


@dataclass(frozen=True)
class ExitPass:
    """What one pass through all layers shows of leaving after each of them."""

    answers: Tensor
    """(L, B, ...), what the network answers where a row leaves after each layer."""
    observations: Tensor
    """(B, L - 1, S), what the policy sees after each layer but the last."""
    compute: Tensor
    """(B, L), the relative compute of leaving after each layer, decisions and readouts included."""

    def scores(self, score: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Tensor:
        """(B, L), what `score`, outputs and labels of rows → (rows,), makes of every exit's answers; without a gradient."""
        L, B = self.answers.shape[:2]
        return score(self.answers.detach().flatten(0, 1), labels.repeat(L, *[1] * (labels.dim() - 1))).view(L, B).T


def exit_pass(stack: LayerStack, policy: JumpPolicy, inputs: Inputs, price: Tensor) -> ExitPass:
    """Runs all layers on B rows, with every readout.

    Args:
        stack: with readouts.
        policy: who will decide.
        inputs: of the rows.
        price: (B,), which the observations show.
    """
    return passed_by(EveryExit(policy), stack, inputs, price)


def passed_by(router: EveryExit, stack: LayerStack, inputs: Inputs, price: Tensor) -> ExitPass:
    """The same where `router` takes the rows through the layers."""
    rollout = routed_forward(stack, router, inputs, price=price)
    return ExitPass(torch.stack([*router.answers, rollout.outputs]), router.observations(), router.compute(rollout.spent))


def left_at(leaves: Tensor) -> Tensor:
    """(N,) long, the first of the L - 1 layers after which a row `leaves`, (N, L - 1) bool; the last layer where it leaves after none."""
    last = torch.full_like(leaves[:, 0], leaves.shape[1], dtype=torch.long)
    return torch.where(leaves.any(dim=1), leaves.int().argmax(dim=1), last)
