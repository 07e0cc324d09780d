"""What agents that train the jump policy share: prices, score, and the end of a run, from calibration to the final table."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from agents.agent import Agent, AgentConfig, Results, TrainedRun
from agents.policy.calibration import calibrate, calibration_rows, refuse_small_budget
from agents.run.forecast import seconds_of
from agents.run.learner import Learner
from agents.run.pictures import DRAWING, show_policy
from agents.run.report import AT_EVAL_PRICE, TABLE, TIMED_ROWS, TIMING, TIMINGS, final_report, print_next, print_report, rows_of_report
from agents.run.split_tensors import gathered
from agents.run.telemetry import ENV_STEPS
from rl_skip.core.batches import deployed
from rl_skip.core.dial import Guarantee, PriceTable
from rl_skip.core.errors import UserError, positive
from rl_skip.core.forward import routed_forward
from rl_skip.core.plugins import label_of, own_code
from rl_skip.core.processes import together
from rl_skip.core.reward import check_reward, find_reward
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.task import Examples, score_key
from rl_skip.export.policy_folder import save
from rl_skip.learning.prices import BudgetPrice, PriceRange, price_source
from rl_skip.measure.evaluation import Evaluation, evaluate
from rl_skip.measure.every_price import at_any_price
from rl_skip.measure.guarantee import guarantee
from rl_skip.measure.runs import MODEL
from rl_skip.nets.network import network_to_json

__all__ = ["PolicyAgent", "PolicyAgentConfig"]

CALIBRATION, GUARANTEE, EXPORT, PICTURES = "calibration", "guarantee", "export of the policy", "pictures"
"""Parts of a run's end, beside those of the report."""
TRIED_ROWS = 256
"""Validation rows that are run to foresee how long all of them take."""
ScoreName = Literal["accuracy", "probability"]


@dataclass(frozen=True)
class PolicyAgentConfig(AgentConfig):
    """What the policy learns from."""

    score: ScoreName = "accuracy"
    """What the policy is rewarded for: "accuracy", 1 for a right prediction, or what the task has for a score in its place; or the probability of the
    label."""
    entropy_start: float = 0.1
    """Weight of the entropy bonus at the start. Too low, and the policy freezes on the first route that works; 0.01 to 0.1."""
    entropy_end: float = 0.001
    """Weight of the entropy bonus from four fifths of the run on."""
    value_weight: float = 1.0
    """Weight of the critic's loss."""
    imitation_weight: float = 0.0
    """Weight at the start of imitating random routes that earn more than expected. Finds what is never sampled; needs the critic; 0 to 0.5."""

    def __post_init__(self) -> None:
        for name in ("entropy_start", "entropy_end", "value_weight"):
            positive(name, getattr(self, name), f"--{name.replace('_', '-')}")
        positive("imitation_weight", self.imitation_weight, "--imitation-weight", zero=True)


@contextmanager
def finite_observations(policy: nn.Module) -> Iterator[None]:
    """Within it, an observation with a number that is not finite is refused."""

    def check(_policy: nn.Module, observations: tuple[Tensor, ...]) -> None:
        if not observations[0].isfinite().all():
            raise UserError("the policy sees numbers that are not finite; mend the feature that gives them")

    hook = policy.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


class PolicyAgent(Agent):
    """Base of the agents that train the learner's policy; a subclass says how, in `update`.

    Args:
        learner: network, policy and critic, with their optimisers.
        prices: where the price of compute comes from. Default: what the options ask for.
    """

    config_class: ClassVar[type[AgentConfig]] = PolicyAgentConfig
    leaves_start = True
    leaves = "policy"
    see = "eval {folder}"

    config: PolicyAgentConfig

    def __init__(self, learner: Learner, prices: PriceRange | BudgetPrice | None = None) -> None:
        self.learner = learner
        self.reward = find_reward(learner.config.pricing.reward)
        """What a route earns; a budget adds its penalty to what is optimised, `prices.reward`."""
        self.prices = price_source(learner.config.pricing, self.reward) if prices is None else prices
        self.config = cast(PolicyAgentConfig, learner.config.agent_config)
        self._decisions = torch.zeros((), dtype=torch.long, device=learner.device)  # those that only a device has counted
        self._counted = 0

    @property
    def env_steps(self) -> int:
        """Steps of the environment that the policy has learned from: decisions, each of one row after one layer."""
        return self._counted + int(self._decisions)

    def learned_from(self, decisions: Tensor | int) -> None:
        """Adds to `env_steps`, in every process the decisions of all of them; to be called by every update of the policy. Costs no synchronisation
        with the host."""
        if isinstance(decisions, int):
            self._counted += decisions
        else:
            self._decisions += decisions

    def try_out(self) -> None:
        """Observes and rewards two rows, in evaluation mode, and tries the budget; draws nothing from the run's random numbers."""
        learner = self.learner
        rows, price = learner.validation.take(slice(0, 2)), self.prices.validation_price
        with deployed(learner.stack, learner.policy), torch.random.fork_rng(devices=[]):
            router = PolicyRouter(learner.policy, sample=True, generator=torch.Generator(learner.device).manual_seed(0))
            with finite_observations(learner.policy):
                rollout = routed_forward(learner.stack, router, rows.inputs, price=price)
            check_reward(self.prices.reward, str(learner.config.pricing.reward))
            with own_code(f"the reward {learner.config.pricing.reward}"):
                prices = torch.full_like(rollout.compute, price)
                reward = self.prices.reward.to_go(self.score(rollout.outputs, rows.labels), rollout.spent, prices)
                if reward.shape != rollout.spent.shape or not reward.isfinite().all():
                    raise ValueError(f"{len(prices)} rows must earn a finite number each, got {reward.tolist()}")
            if (budget := learner.config.pricing.budget) is not None:
                refuse_small_budget(learner, budget)

    @property
    def scores_as_task(self) -> bool:
        """Whether `score` is the task's own, by which the network is measured."""
        return type(self).score is PolicyAgent.score and self.config.score == "accuracy"

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), the score that the policy is rewarded for."""
        task = self.learner.task
        return task.score(outputs, labels) if self.config.score == "accuracy" else task.probability(outputs, labels)

    def evaluate(self, examples: Examples) -> Evaluation:
        """The greedy policy at the price used for validation."""
        learner = self.learner
        return evaluate(learner.stack, learner.policy, learner.task, examples, price=self.prices.validation_price, reward=self.prices.reward)

    def metrics(self) -> dict[str, float]:
        return {**self.prices.metrics(), ENV_STEPS: float(self.env_steps)}

    def show_finished(self, run: TrainedRun, part: int, values: dict[str, float], metrics: Mapping[str, Tensor] | None = None) -> None:
        """Writes the curves of a policy that learns on from the finished network; in processes that write nothing does nothing.

        Args:
            part: which pass, or rollout, it was, from 0; the step is that of the last update and one for each.
            values: their tags are "finished/…".
            metrics: of which a training has curves too, with their tags.
        """
        if run.curves is None:
            return
        named = {f"finished/{name}": value for name, value in values.items()} | {name: float(value) for name, value in (metrics or {}).items()}
        run.curves.scalars(self.learner.updates + 1 + part, named | {ENV_STEPS: float(self.env_steps)})

    def finish(self, run: TrainedRun) -> Results:
        """Merges adapters, calibrates the policy, exports it, and sets it beside full depth and fixed and random routes."""
        learner, promise = self.learner, None
        learner.merge_adapters()
        table, price = PriceTable(score_name=learner.task.score_name), self.prices.validation_price
        with run.part(CALIBRATION):
            table, price = calibrate(learner, self.prices)
        if learner.config.pricing.guarantee is not None:
            with run.part(GUARANTEE):
                promise = self._guarantee(table, price, run.console)
                price = price if promise is None else promise.price
        with run.part(EXPORT), gathered(learner.stack):
            if together().first:
                self._export(run, table, price, promise)
        eval_price, eval_reward = self.prices.validation_price, self.prices.reward
        report = final_report(learner, table, price, run, reward=self.reward, eval_price=eval_price, eval_reward=eval_reward)
        print_report(report, run.console, learner.task.score_name)
        with run.part(PICTURES):
            evaluation = self.evaluate(learner.validation)
            if run.curves is not None:
                step = run.curves.last_step + 1
                run.curves.scalars(step, run.curves.evaluation(step, evaluation, learner.task.score_name))
            show_policy(run, learner, price)
        print_next(run.folder, run.console, own_stack=run.own_stack)
        return Results(report, self._figures(report))

    def _figures(self, report: dict[str, Any]) -> dict[str, float]:
        """The test results by which runs are compared: at the price of the validations, as `final/`, and as exported."""
        named = (score_key(self.learner.task.score_name), "compute", "reward", "price")
        at = {"final": report.get(AT_EVAL_PRICE, {}), "exported": {**report.get("policy", {}), "price": report.get("price")}}
        return {f"{stage}/{name}": row[name] for stage, row in at.items() for name in named if row.get(name) is not None}

    def foreseen(self) -> dict[str, float]:
        learner = self.learner
        rows, price = learner.validation.take(slice(0, TRIED_ROWS)), self.prices.validation_price
        seconds = seconds_of(lambda: at_any_price(learner.stack, learner.policy, learner.task, rows)(price)) / len(rows)
        low, high = self.prices.range
        passed = calibration_rows(learner, budget=isinstance(self.prices, BudgetPrice)) if low < high else 0
        reported = {TABLE: seconds * rows_of_report(learner)} | ({TIMING: seconds * TIMED_ROWS * TIMINGS} if learner.stack.split is None else {})
        return {CALIBRATION: seconds * passed, **reported, PICTURES: 2 * seconds * len(learner.validation) + DRAWING}

    def _guarantee(self, table: PriceTable, price: float, console: Console) -> Guarantee | None:
        """The guarantee that is set, and at which price it holds; None, with a message, where the data do not support it."""
        learner, pricing = self.learner, self.learner.config.pricing
        if pricing.guarantee is None:
            return None
        try:
            promise = guarantee(
                learner.stack, learner.policy, learner.task, learner.validation, table, price, pricing.guarantee, pricing.guarantee_kind
            )
            said = f"guaranteed at price {promise.price:.4g}: {promise.in_words(learner.task.score_name)}"
        except UserError as refusal:
            promise, said = None, f"no guarantee: {refusal}"
        console.print(said, soft_wrap=True, markup=False, highlight=False)
        return promise

    def _export(self, run: TrainedRun, table: PriceTable, price: float, promise: Guarantee | None) -> None:
        learner, task, config = self.learner, self.learner.task, self.learner.config
        trained_on: dict[str, Any] = {"task": task.name, "rows": len(learner.train), "seed": config.seed, "agent": label_of(config.agent)}
        stack, network, weights = learner.stack, None, True
        if not run.own_stack and stack.write_model(run.folder / MODEL):
            weights = False
            trained_on |= {"model": Path(config.options.model).name} if config.options.pretrained else {}
        elif not run.own_stack:
            network = network_to_json(config.network, task.embedding, task.tokens, len(task.classes))
        options: dict[str, Any] = {"price": price, "price_table": table, "trained_on": trained_on, "reward": self.reward, "guarantee": promise}
        save(run.folder / "policy", learner.policy, stack=stack, weights=weights, network=network, overwrite=True, **options)

    def state_dict(self) -> dict[str, Any]:
        """What the next price depends on, and the environment steps so far; all else is in the learner's state."""
        return {"prices": self.prices.state_dict(), ENV_STEPS: self.env_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.prices.load_state_dict(state["prices"])
        self._counted = state[ENV_STEPS]
        self._decisions.zero_()
