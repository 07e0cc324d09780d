"""A policy measured at many prices: in one pass where it can but leave, since every exit then shows what it answers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.batches import in_batches
from rl_skip.core.exits import ExitPass, exit_pass
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task
from rl_skip.learning.outcomes import SeenExits
from rl_skip.measure.evaluation import Evaluation, evaluate

__all__ = ["ExitOutcomes", "at_any_price", "evaluate_prices", "exit_outcomes", "leaves_only", "outcome_columns", "shown_by_one_pass"]


@dataclass(frozen=True)
class ExitOutcomes(SeenExits):
    """The same with what is answered; all on the CPU."""

    prediction: Tensor
    """(N, L, ...)."""

    def evaluation(self, policy: JumpPolicy, price: float, reward: Reward = LINEAR) -> Evaluation:
        """What the greedy policy does at a price; a policy that sees what these were made for."""
        layer = self.left(policy, price).unsqueeze(1)  # (N, 1)
        route = torch.arange(self.score.shape[1]) <= layer  # (N, L)
        everyone = torch.arange(len(layer))
        prediction = self.prediction[everyone, layer.squeeze(1)]
        return Evaluation(price, route, self.score.gather(1, layer).squeeze(1), self.compute.gather(1, layer).squeeze(1), prediction, reward)


def leaves_only(stack: LayerStack, policy: JumpPolicy) -> bool:
    """Whether all that the policy decides is after which layer a row leaves, each of which has a readout."""
    return stack.readouts is not None and not policy.rules.jumps


def shown_by_one_pass(stack: LayerStack, policy: JumpPolicy) -> bool:
    """Whether one pass through all layers shows what the policy does at every price: not where it jumps, looks at the input alone, or sees more of
    the price than the price."""
    rules = policy.rules
    return leaves_only(stack, policy) and rules.scope != "input" and all(feature.at_once for feature in rules.layout.parts)


def exit_outcomes(stack: LayerStack, policy: JumpPolicy, task: Task, examples: Examples, batch_size: int = 256) -> ExitOutcomes | None:
    """One pass of all examples through all layers; None where it does not show what the policy does at every price."""
    if not shown_by_one_pass(stack, policy):
        return None

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor, ...]:
        return outcome_columns(exit_pass(stack, policy, batch.inputs, torch.ones(len(batch), device=batch.labels.device)), task, batch)

    return ExitOutcomes(*in_batches(run, examples, batch_size, stack, policy))


def outcome_columns(exits: ExitPass, task: Task, batch: Examples) -> tuple[Tensor, ...]:
    """What an `ExitOutcomes` has of a batch, in the order of its fields."""
    predictions = torch.stack([task.prediction(outputs) for outputs in exits.answers], dim=1)
    return exits.observations, exits.scores(task.score, batch.labels), exits.compute, predictions


def at_any_price(
    stack: LayerStack, policy: JumpPolicy, task: Task, examples: Examples, *, reward: Reward = LINEAR, batch_size: int = 256
) -> Callable[[float], Evaluation]:
    """What tells how the greedy policy, as it is when asked, does at a price on these examples; arguments as of `evaluate`."""
    outcomes = exit_outcomes(stack, policy, task, examples, batch_size)
    if outcomes is not None:
        return lambda price: outcomes.evaluation(policy, price, reward)
    return lambda price: evaluate(stack, policy, task, examples, price=price, reward=reward, batch_size=batch_size)


def evaluate_prices(
    stack: LayerStack,
    policy: JumpPolicy,
    task: Task,
    examples: Examples,
    prices: Iterable[float],
    *,
    reward: Reward = LINEAR,
    batch_size: int = 256,
) -> list[Evaluation]:
    """The greedy policy at each price; arguments as of `evaluate`."""
    measured = at_any_price(stack, policy, task, examples, reward=reward, batch_size=batch_size)
    return [measured(price) for price in prices]
