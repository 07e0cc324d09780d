"""What is said of a policy that does the same with every row: that it does, why, and what to try."""

from pathlib import Path
from typing import Any

from agents.run.learner import Learner
from rl_skip.measure.evaluation import Evaluation

__all__ = ["remarks"]

FEW_UPDATES = 200
"""With fewer a policy has hardly moved from where it began."""
SAME = 0.995
"""Share of rows beyond which the policy counts as doing the same with all."""
APART = 0.01
"""How far apart two points of the dial are, in compute, that are worth naming."""


def remarks(learner: Learner, policy: Evaluation, full_score: float, dial: list[dict[str, Any]], folder: Path) -> list[str]:
    """A sentence where the policy skips nothing, or runs no more than it must; none where rows differ.

    Args:
        policy: on test data, at the operating price.
        full_score: of full depth, on the same rows.
        dial: what the policy does on test data at other prices, each with "price" and "compute".
        folder: of the run, for the command to try.
    """
    must = [0] if learner.rules.allow_exit else [0, learner.stack.depth - 1]
    optional = [i for i in range(learner.stack.depth) if i not in must]
    ran = policy.route[:, optional].float()  # (N, L - those that always run)
    if float(ran.all(dim=1).float().mean()) >= SAME:
        return [f"the policy skips nothing: {_why_nothing(learner, policy, dial, folder)}"]
    if float((ran.sum(dim=1) == 0).float().mean()) >= SAME:
        layers = "the first layer" if len(must) == 1 else "the first and the last layer"
        return [f"the policy runs nothing but {layers}: {_why_least(learner, policy, full_score, dial, folder)}"]
    return []


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
