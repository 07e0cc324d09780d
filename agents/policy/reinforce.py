"""REINFORCE (Williams 1992) on jumps, beside the supervised loss on routes that were sampled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from agents.agent import AGENTS, Results, TrainedRun
from agents.policy.imitation import imitation_loss, imitation_weight
from agents.policy.policy_agent import PolicyAgent, PolicyAgentConfig
from agents.run.forecast import seconds_of
from agents.run.gradients import Part
from agents.run.learner import Learner
from agents.run.telemetry import rollout_metrics, score_metric
from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.errors import UserError
from rl_skip.core.exits import exit_pass
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.processes import together
from rl_skip.core.progress import begin_stage
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.task import Examples
from rl_skip.learning.alone import POLICY_BATCH, learn_alone
from rl_skip.learning.exact import entropy_weight, exact_loss, exit_metrics, leaving
from rl_skip.learning.outcomes import SeenExits
from rl_skip.learning.prices import BudgetPrice, PriceRange

__all__ = ["Reinforce", "ReinforceConfig", "estimated_advantage", "leave_one_out_advantage", "reinforce_loss"]

BaselineName = Literal["value", "leave-one-out"]
PASS_BATCH = 256
POLICY_ALONE = "policy alone"
"""The part of a run in which the policy learns from the finished network."""
GradientName = Literal["auto", "exact", "sampled"]
Advantage = Callable[[Rollout, Tensor, Tensor], Tensor]
"""Rollout of N rows, reward of each route (N,), reward to go of each decision (N, L) → advantage, (N, L) or (N, 1)."""


@dataclass(frozen=True)
class ReinforceConfig(PolicyAgentConfig):
    """REINFORCE."""

    routes_per_input: int = 4
    """With the sampled gradient: routes for each input. More lowers its variance and costs that many partial forward passes; 2 to 8."""
    baseline: BaselineName = "leave-one-out"
    """"leave-one-out": the mean reward of the input's other routes; "value": a learned critic."""
    gradient: GradientName = "auto"
    """"exact": of the expected reward over all exits, from one pass, where a row goes on or leaves (--readouts --no-jumps); "sampled": from routes
    that were drawn. Default: exact where it can be: not with a critic, imitation, or an advantage of one's own."""
    policy_epochs: int = 60
    """With the exact gradient: passes of the policy alone over what the finished network says of the training rows. They take
    seconds, and the network's own pass over the rows before them as long as a validation of so many."""

    def __post_init__(self) -> None:
        if self.policy_epochs < 0:
            raise UserError(f"policy_epochs must be at least 0, got {self.policy_epochs}; set --policy-epochs")
        if self.routes_per_input < (2 if self.baseline == "leave-one-out" else 1):
            raise UserError(f"a {self.baseline} baseline cannot do with {self.routes_per_input} routes per input; raise --routes-per-input")
        super().__post_init__()
        if self.imitation_weight > 0 and self.baseline == "leave-one-out":
            raise UserError("imitation compares routes with what a critic expects; set --baseline value, or --imitation-weight 0")


def leave_one_out_advantage(reward_BG: Tensor) -> Tensor:
    """Advantage of each sampled route over the other routes of the same input.

    The mean reward of an input's other G - 1 routes is an unbiased baseline that needs no critic
    (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!").

    Args:
        reward_BG: one reward for each of the G routes of each of the B inputs, in units of score.

    Returns:
        Same shape. Sums to zero over G for every input.

    Raises:
        ValueError: if G < 2, since one route has no others to be compared with.
    """
    group_size = reward_BG.shape[1]
    if group_size < 2:
        raise ValueError(f"a leave-one-out baseline needs at least 2 routes per input, got {group_size}; raise --routes-per-input")
    others_BG = (reward_BG.sum(dim=1, keepdim=True) - reward_BG) / (group_size - 1)  # (B, G)
    return reward_BG - others_BG


def estimated_advantage(config: ReinforceConfig, rollout: Rollout, reward: Tensor, to_go: Tensor) -> Tensor:
    """Advantage of the routes over their baseline, (N, 1) with leave-one-out, (N, L) with a critic.

    With leave-one-out every decision of a route gets the advantage of the whole route: what was spent before a decision is
    known to the baseline too, and cancels.
    """
    if config.baseline == "leave-one-out":
        return leave_one_out_advantage(reward.view(-1, config.routes_per_input)).view(-1, 1)  # (B G, 1)
    return (to_go - rollout.values).detach()  # (B G, L)


@dataclass
class PolicyLosses:
    """The parts of the policy's loss, scalars."""

    policy: Tensor
    """−log π · advantage, summed over a route's decisions."""
    value: Tensor
    """Squared error of the critic, summed likewise."""
    entropy: Tensor
    """Entropy of the decisions, summed likewise."""


def reinforce_loss(rollout: Rollout, score: Tensor, price: Tensor, advantage: Advantage, reward: Reward = LINEAR) -> PolicyLosses:
    """REINFORCE with reward to go: what a decision earned is the gain less the penalty for all compute after it.

    Sums run over a route's decisions and means over the rows: never divided by the route's own length, since here the
    length is the cost.

    Args:
        rollout: of B · G rows, the G routes of an input side by side.
        score: (B · G,), of each row's prediction.
        price: (B · G,), the same for the G routes of an input.
        advantage: what the routes earned more than their baseline.
        reward: what a route earns.
    """
    taken = rollout.decided.float()  # (B G, L)
    to_go = reward.to_go(score, rollout.spent, price)  # (B G, L)
    advantages = advantage(rollout, reward.total(score, rollout.compute, price), to_go)  # (B G, L), or (B G, 1)
    return PolicyLosses(
        policy=-(rollout.log_probs * advantages * taken).sum(dim=1).mean(),
        value=((rollout.values - to_go).square() * taken).sum(dim=1).mean(),
        entropy=(rollout.entropies * taken).sum(dim=1).mean(),
    )


class Reinforce(PolicyAgent):
    """The agent: one update samples G routes for each input of a batch, from which the policy learns; the network learns on the first.

    The G routes are run as they will be when deployed: in evaluation mode, without gradients of the network, which makes
    many routes cheap.
    """

    config_class = ReinforceConfig
    divides = True

    config: ReinforceConfig

    def __init__(self, learner: Learner, prices: PriceRange | BudgetPrice | None = None) -> None:
        super().__init__(learner, prices)
        self.critic = learner.critic if self.config.baseline == "value" else None
        obstacle = self._obstacle()
        if self.config.gradient == "exact" and obstacle is not None:
            raise UserError(f"{obstacle}, or --gradient sampled")
        self.exact = obstacle is None and self.config.gradient != "sampled"
        self.runs_all_layers = self.exact

    def try_out(self) -> None:
        super().try_out()
        if self.exact and self.config.policy_epochs > 0:
            self._check_features()

    def _obstacle(self) -> str | None:
        """Why the gradient cannot be exact, and what to set; None: it can."""
        learner, config = self.learner, self.config
        if learner.stack.readouts is None or learner.rules.jumps:
            return "the exact gradient is that of when to leave: set --readouts --no-jumps"
        if type(self).advantage is not Reinforce.advantage:
            return "the exact gradient takes every exit's reward as it is, and an agent with an advantage of its own samples: set no --gradient"
        if config.baseline != "leave-one-out" or config.imitation_weight > 0:
            return "the exact gradient has no use for a critic: set --baseline leave-one-out"
        return None

    def _check_features(self) -> None:
        """Raises `UserError` where something else than the price itself differs with the price: the policy's own epochs show it many prices."""
        learner = self.learner
        batch, layout = learner.train.take(slice(0, 4)), learner.rules.layout
        with deployed(learner.stack), torch.random.fork_rng(devices=[]):
            low, high = (
                exit_pass(learner.stack, learner.policy, batch.inputs, torch.full((len(batch),), price, device=learner.device)).observations
                for price in (layout.price_low, layout.price_high)
            )
        if not torch.allclose(low[..., :-1], high[..., :-1]):
            raise UserError("a feature differs with the price or each time it is read; the policy's own epochs read it once: set --policy-epochs 0")

    def advantage(self, rollout: Rollout, reward: Tensor, to_go: Tensor) -> Tensor:
        """What the routes earned more than expected: one for each decision (N, L), or for each route (N, 1).

        Args:
            rollout: of N = B · G rows, the G routes of an input side by side.
            reward: (N,), of the whole route.
            to_go: (N, L), of what is left of it at each decision.
        """
        return estimated_advantage(self.config, rollout, reward, to_go)

    def update(self, update: int) -> dict[str, Tensor]:
        """One update; returns its metrics as scalars on the device."""
        return self._exact_update(update) if self.exact else self._sampled_update(update)

    def _exact_update(self, update: int) -> dict[str, Tensor]:
        """One pass through all layers, from which network, readouts and policy learn together."""
        learner, rows = self.learner, self.learner.batch_rows(update)
        prices = self.prices.draw(len(rows), learner.generator)  # (B,)
        learner.prepare(learns=learner.tunes)
        metrics = learner.learn(update, rows, lambda part: self._exact_loss(part, part.of(prices), learner.joint_progress(update)))
        self.prices.observe(metrics["rollout/compute"])
        self.learned_from(len(rows) * (learner.stack.depth - 1))  # every decision after every layer but the last, of every row
        return metrics | {"train/policy_grad_norm": learner.descent.policy_grad_norm}

    def _exact_loss(self, part: Part, price: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        learner, batch = self.learner, part.batch
        exits = exit_pass(learner.stack, learner.policy, batch.inputs, price)
        leaves = leaving(learner.policy, exits.observations)
        scores = exits.scores(self.score, batch.labels)  # (B, L)
        shown = scores if self.scores_as_task else exits.scores(learner.task.score, batch.labels)
        earned = self.prices.reward.total(scores, exits.compute, price.unsqueeze(1))  # (B, L)
        loss, expected = exact_loss(leaves, earned, entropy_weight(self.config, progress))
        metrics = exit_metrics(leaves, expected, shown, learner.task.score_name, exits.compute, price)
        if learner.tunes:
            supervised = learner.exits_loss(batch, part.rows, exits.answers)
            loss, metrics["train/supervised_loss"] = loss + supervised, supervised
        return loss, metrics | {"train/policy_loss": -expected.mean()}

    def finish(self, run: TrainedRun) -> Results:
        if self.exact:
            begin_stage(POLICY_ALONE)
            self.learn_from_finished_network(partial(self.show_finished, run))
        return super().finish(run)

    def foreseen(self) -> dict[str, float]:
        parts, learner = super().foreseen(), self.learner
        if not self.exact:
            return parts
        rows, price = learner.train.take(slice(0, PASS_BATCH)), torch.ones(PASS_BATCH, device=learner.device)
        looked = torch.rand(POLICY_BATCH, learner.stack.depth - 1, learner.rules.layout.size, device=learner.device)
        with deployed(learner.stack):
            passed = seconds_of(lambda: exit_pass(learner.stack, learner.policy, rows.inputs, price[: len(rows)])) / len(rows)
        step = 2 * seconds_of(lambda: leaving(learner.policy, looked).probability.sum().backward())  # the optimiser's, and the loss, besides
        return {POLICY_ALONE: len(learner.train) * (passed + self.config.policy_epochs * step / POLICY_BATCH)} | parts

    def learn_from_finished_network(self, show: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """The policy alone, on what the network, which no longer changes, says of the training rows: one pass, then many over its answers.

        Args:
            show: what is told how each of the many passes went.
        """
        learner, policy = self.learner, self.learner.policy
        decisions = len(learner.train) * (learner.stack.depth - 1)

        def passed(epoch: int, means: dict[str, float]) -> None:
            self.learned_from(decisions)
            if show is not None:
                show(epoch, means)

        def seen(batch: Examples, _rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            exits = exit_pass(learner.stack, policy, batch.inputs, torch.ones(len(batch), device=learner.device))
            return exits.observations, exits.scores(self.score, batch.labels), exits.compute

        learn_alone(
            policy,
            SeenExits(*in_batches(seen, learner.train, PASS_BATCH, learner.stack)),
            self.prices,
            self.config,
            learning_rate=learner.config.schedule.policy_learning_rate,
            generator=torch.Generator().manual_seed(learner.config.seed),
            passed=passed,
        )
        together().copy_first(policy.parameters())  # in case processors round differently

    def _sampled_update(self, update: int) -> dict[str, Tensor]:
        """G routes for each input, by random numbers of its own, so that who runs a row, and beside which others, does not decide its route."""
        learner, config, progress = self.learner, self.config, self.learner.joint_progress(update)
        rows = learner.batch_rows(update)
        B, weight = len(rows), imitation_weight(config.imitation_weight, progress)
        prices = self.prices.draw(B, learner.generator)  # (B,)
        chances = torch.rand(B, config.routes_per_input, learner.stack.depth, generator=learner.generator)
        imitated = (self.prices.draw(B, learner.generator), learner.random_routes(B)) if weight > 0 else None

        def loss(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
            learner.prepare(learns=False)
            mean, metrics, sampled = self._routes_loss(part, part.of(prices), part.of(chances), progress)
            if imitated is not None:
                price, route = map(part.of, imitated)
                mean = mean + weight * imitation_loss(learner, self.prices.reward, part.batch, price, route, self.score)
            if learner.tunes:
                learner.prepare(learns=True)
                supervised, _ = learner.network_loss(part.batch, part.rows, sampled)
                mean, metrics["train/supervised_loss"] = mean + supervised, supervised
            return mean, metrics

        metrics = learner.learn(update, rows, loss)
        self.prices.observe(metrics["rollout/compute"])
        self.learned_from((metrics["rollout/ep_len_mean"] * B * config.routes_per_input).round().long())  # those of all processes
        return metrics | {"train/policy_grad_norm": learner.descent.policy_grad_norm}

    def _routes_loss(self, part: Part, price: Tensor, chances: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The policy's loss on sampled routes, its metrics, and the first route of each input.

        Args:
            part: b rows.
            price: (b,).
            chances: (b, G, L), of the routes.
            progress: how much of the joint training has passed, 0 to 1.
        """
        learner, config, G = self.learner, self.config, chances.shape[1]
        price, labels = price.repeat_interleave(G), part.batch.labels.repeat_interleave(G, dim=0)  # (b G,), (b G, ...)
        router = PolicyRouter(learner.policy, chances=chances.flatten(0, 1))
        rollout = routed_forward(learner.stack, router, part.batch.inputs, price=price, critic=self.critic, copies=G)
        score = self.score(rollout.outputs, labels)
        losses = reinforce_loss(rollout, score, price, self.advantage, self.prices.reward)
        loss = losses.policy - entropy_weight(config, progress) * losses.entropy
        metrics = rollout_metrics(rollout, score, price, self.prices.reward, learner.rules)
        metrics |= score_metric(learner.task, "rollout", rollout.outputs, labels) | {"train/policy_loss": losses.policy}
        metrics["train/value_loss"] = torch.zeros((), device=learner.device)  # without a critic there is nothing to miss
        if self.critic is not None:
            loss, metrics["train/value_loss"] = loss + config.value_weight * losses.value, losses.value
        return loss, metrics, rollout.route[::G]


AGENTS.register("reinforce", Reinforce)
