"""What is said of a run that asks for it: of its curves while it trains, and of a policy that does the same with every row; why, and what to try.

What is wrong begins with "alarm:". What is only worth knowing, such as that one layer is enough for these data, does not.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from agents.run.learner import Learner
from rl_skip.learning.prices import PRICE_BOUNDS
from rl_skip.measure.evaluation import Evaluation

__all__ = ["ALARM", "SAME", "CurveWatch", "remarks"]

ALARM = "alarm: "
FEW_UPDATES = 200
"""With fewer a policy has hardly moved from where it began."""
SAME = 0.995
"""Share of rows beyond which the policy counts as doing the same with all."""
APART = 0.01
"""How far apart two points of the dial are, in compute, that are worth naming."""
IN_A_ROW = 3
"""Points of a curve that must agree."""
EARLY, GONE = 0.25, 0.02
"""Entropy below this share of its largest is gone; within this share of the training with the policy that is early."""
HALF, VANISHED = 0.5, 1e-4
"""A gradient of the policy below this share of its largest has vanished; from here on it may, since the policy has learned."""
FALLS, FALL = 4, 0.02
"""Validations in a row that are each worse than the one before, and the reward that they have lost together."""
EXCESS = 0.05
"""Compute above the budget, at the end, that counts as out of reach."""


class CurveWatch:
    """Reads a run's curves as they are written, and says once what is wrong with them.

    Args:
        learner: of the run.
        history: what was written before, as in metrics.jsonl.
    """

    def __init__(self, learner: Learner, history: Iterable[Mapping[str, float]] = ()) -> None:
        self.learner = learner
        self.said: dict[str, str] = {}
        """What was said, under its kind."""
        self._largest: dict[str, float] = {}
        self._low: dict[str, int] = {}
        self._validations: deque[tuple[float, float]] = deque(maxlen=FALLS + 1)
        for entry in history:
            self.see(entry)

    def see(self, entry: Mapping[str, float]) -> list[str]:
        """Takes the numbers of one step, with "step"; returns what is new to be said."""
        progress = self.learner.joint_progress(int(entry["step"]))
        found = {
            "entropy": self._entropy_gone(entry, progress),
            "gradient": self._gradient_vanished(entry, progress),
            "reward": self._reward_falls(entry),
            "budget": self._budget_out_of_reach(entry, progress),
        }
        new = {kind: f"{ALARM}{said}" for kind, said in found.items() if said is not None and kind not in self.said}
        self.said |= new
        return list(new.values())

    def _fell_below(self, share: float, tag: str, entry: Mapping[str, float]) -> bool:
        """Whether a curve has been below a share of its largest value for some points."""
        if tag not in entry:
            return False
        self._largest[tag] = max(self._largest.get(tag, 0.0), entry[tag])
        self._low[tag] = self._low.get(tag, 0) + 1 if entry[tag] <= share * self._largest[tag] else 0
        return self._low[tag] >= IN_A_ROW

    def _entropy_gone(self, entry: Mapping[str, float], progress: float) -> str | None:
        if not self._fell_below(GONE, "policy/entropy", entry) or progress > EARLY:
            return None
        start = getattr(self.learner.config.agent_config, "entropy_start", 0.0)
        rate = self.learner.config.schedule.policy_learning_rate
        return (
            f"the policy stopped exploring early: its entropy is {entry['policy/entropy']:.2g} after {progress:.0%} of the training with it, "
            f"from {self._largest['policy/entropy']:.2g}; raise --entropy-start, now {start:g}, or lower --policy-learning-rate, now {rate:g}"
        )

    def _gradient_vanished(self, entry: Mapping[str, float], progress: float) -> str | None:
        if not self._fell_below(VANISHED, "train/policy_grad_norm", entry) or progress > HALF:
            return None
        rate = self.learner.config.schedule.policy_learning_rate
        return (
            f"the policy has stopped learning: the norm of its gradient is {entry['train/policy_grad_norm']:.1g} after {progress:.0%} of the "
            f"training with it; where its entropy is near 0, raise --entropy-start and lower --policy-learning-rate, now {rate:g}; "
            f"where not, all routes earn the same: {_change(self.learner, 'raise')}"
        )

    def _reward_falls(self, entry: Mapping[str, float]) -> str | None:
        """Only at one and the same price: a budget's moves, and the reward with it."""
        if "eval/reward" not in entry:
            return None
        self._validations.append((entry["eval/price"], entry["eval/reward"]))
        prices, rewards = zip(*self._validations, strict=True)
        falls = all(later < before for before, later in zip(rewards, rewards[1:], strict=False))
        same = all(math.isclose(price, prices[0]) for price in prices)
        if len(rewards) <= FALLS or not (falls and same) or rewards[0] - rewards[-1] < FALL:
            return None
        schedule = self.learner.config.schedule
        return (
            f"the reward fell in each of the last {FALLS} validations, from {rewards[0]:.3f} to {rewards[-1]:.3f}; "
            f"lower --policy-learning-rate, now {schedule.policy_learning_rate:g}, and --learning-rate, now {schedule.learning_rate:g}"
        )

    def _budget_out_of_reach(self, entry: Mapping[str, float], progress: float) -> str | None:
        budget, excess = self.learner.config.pricing.budget, entry.get("budget/violation", 0.0)
        if budget is None or "budget/violation" not in entry:
            return None
        at_the_bound = entry["budget/price"] >= 0.999 * PRICE_BOUNDS[1] and excess > APART
        if not at_the_bound and (progress < 1 or excess < EXCESS):
            return None
        few = _few(self.learner)
        why = "at the highest price there is" if at_the_bound else "at the end of the training"
        what = "raise --epochs" if few and not at_the_bound else "raise --budget, or --budget-integral, with which the price rises faster"
        return f"the budget of {budget:g} is out of reach: the sampled routes still cost {budget + excess:.3f} {why}; {what}"


def remarks(
    learner: Learner,
    policy: Evaluation,
    full_score: float,
    dial: list[dict[str, Any]],
    folder: Path,
    earning_more: Mapping[str, float] | None = None,
) -> list[str]:
    """A sentence where the policy skips nothing, runs no more than it must, or sends all rows along one route; none where rows differ.

    It is an alarm where the policy skips nothing, and where something that takes no policy earns more.

    Args:
        policy: on test data, at the operating price.
        full_score: of full depth, on the same rows.
        dial: what the policy does on test data at other prices, each with "price" and "compute".
        folder: of the run, for the command to try.
        earning_more: what earns more reward than the policy at its price, and how much more.
    """
    must = [0] if learner.rules.allow_exit else [0, learner.stack.depth - 1]
    optional = [i for i in range(learner.stack.depth) if i not in must]
    ran = policy.route[:, optional].float()  # (N, L - those that always run)
    if float(ran.all(dim=1).float().mean()) >= SAME:
        return [f"{ALARM}the policy skips nothing: {_why_nothing(learner, policy, dial, folder)}"]
    alarm, better = "", ""
    if earning_more:
        name = max(earning_more, key=lambda name: earning_more[name])
        alarm, better = ALARM, f"{name} earns {earning_more[name]:.3f} more at its price of {policy.price:.3g}; "
    if float((ran.sum(dim=1) == 0).float().mean()) >= SAME:
        layers = "the first layer" if len(must) == 1 else "the first and the last layer"
        return [f"{alarm}the policy runs nothing but {layers}: {better}{_why_least(learner, policy, full_score, dial, folder)}"]
    routes, counts = policy.route.unique(dim=0, return_counts=True)
    if float(counts.max()) / policy.rows >= SAME:
        layers = ", ".join(str(i) for i in routes[counts.argmax()].nonzero().flatten().tolist())
        return [f"{alarm}the policy sends every row along one route, layers {layers}: {better}{_why_one_route(learner, folder, bool(earning_more))}"]
    return []


def _why_one_route(learner: Learner, folder: Path, beaten: bool) -> str:
    if not beaten:
        return f"nothing that was tried earns more, and a fixed route needs no policy: python -m rl_skip prune {folder} pruned"
    few = _few(learner)
    start = getattr(learner.config.agent_config, "entropy_start", 0.0)
    return f"{few} to learn in; raise --epochs" if few else f"it may have frozen before it knew the others; raise --entropy-start, now {start:g}"


def _why_nothing(learner: Learner, policy: Evaluation, dial: list[dict[str, Any]], folder: Path) -> str:
    cheaper = [point for point in dial if point["compute"] < policy.compute - APART]
    if cheaper:
        near = max(cheaper, key=lambda point: float(point["compute"]))
        return f"its price of {policy.price:.3g} is too low; at {near['price']:.3g} it spends {near['compute']:.3f}: {_at(folder, near)}"
    few = _few(learner)
    return f"{few} to learn in; raise --epochs" if few else f"no price that it was trained for makes skipping pay; {_change(learner, 'raise')}"


def _why_least(learner: Learner, policy: Evaluation, full_score: float, dial: list[dict[str, Any]], folder: Path) -> str:
    if full_score <= policy.score:
        return "on these rows all layers are no better, so a network of that depth does without a policy"
    dearer = [point for point in dial if point["compute"] > policy.compute + APART]
    if dearer:
        near = min(dearer, key=lambda point: float(point["compute"]))
        return f"its price of {policy.price:.3g} is too high for more; at {near['price']:.3g} it spends {near['compute']:.3f}: {_at(folder, near)}"
    gained = f"all layers are {100 * (full_score - policy.score):.1f} points better on these rows"
    if full_score - policy.score <= policy.price * (1 - policy.compute):
        return f"{gained}, which at its price of {policy.price:.3g} does not pay; {_change(learner, 'lower')}"
    few = _few(learner)
    return f"{gained}, but {few} to learn in; raise --epochs" if few else f"{gained}; {_change(learner, 'lower')}"


def _at(folder: Path, point: dict[str, Any]) -> str:
    return f"python -m rl_skip eval {folder} --price {point['price']:.4g}"


def _few(learner: Learner) -> str | None:
    updates = learner.updates - learner.warmup_updates
    return f"{updates} update{'s' * (updates > 1)} with the policy {'are' if updates > 1 else 'is'} too few" if updates < FEW_UPDATES else None


def _change(learner: Learner, price: str) -> str:
    """The flag to raise, or to lower, for a `price` that is to be raised or lowered."""
    pricing = learner.config.pricing
    if pricing.budget is not None:
        return f"{'lower' if price == 'raise' else 'raise'} --budget, now {pricing.budget:g}"
    if pricing.price is not None:
        return f"{price} --price, now {pricing.price:g}"
    low, high = pricing.price_range
    return f"{price} --price-range, now {low:g} {high:g}"
