"""What TensorBoard's tabs say of a run beside its curves: columns of HParams, order of the custom scalars, settings as text."""

from typing import Any

from agents.options.config import TrainConfig
from rl_skip.core.fields import flat
from rl_skip.core.plugins import label_of

__all__ = ["columns", "layout", "settings_table"]


def columns(config: TrainConfig) -> dict[str, Any]:
    """The columns of the HParams tab, few, and the same for every run, since TensorBoard takes them from the first run that it reads."""
    pricing, (low, high) = config.pricing, config.pricing.price_range
    price = f"prices {low:g} to {high:g}" if pricing.price is None else f"price {pricing.price:g}"
    return {
        "task": label_of(config.task),
        "agent": label_of(config.agent),
        "seed": str(config.seed),  # as a number it would be shown with decimals
        "price_or_budget": price if pricing.budget is None else f"budget {pricing.budget:g}",
        "learning_rate": config.schedule.learning_rate,
        "policy_learning_rate": config.schedule.policy_learning_rate,
    }


def layout(score: str) -> dict[str, Any]:
    """The custom scalars: what people look at first comes first.

    Args:
        score: the key of the task's score, such as "accuracy".
    """

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    return {
        "reward, accuracy, compute": {
            "reward": chart("rollout/ep_rew_mean", "finished/ep_rew_mean", "eval/reward"),
            score: chart(f"rollout/{score}", f"eval/{score}"),
            "compute": chart("rollout/compute", "finished/compute", "eval/compute"),
        },
        "by environment steps": {
            "reward": chart("by_env_steps/rollout/ep_rew_mean", "by_env_steps/finished/ep_rew_mean", "by_env_steps/eval/reward"),
            score: chart(f"by_env_steps/rollout/{score}", f"by_env_steps/eval/{score}"),
            "compute": chart("by_env_steps/rollout/compute", "by_env_steps/finished/compute", "by_env_steps/eval/compute"),
        },
        "how it learns": {
            "entropy of the policy": chart("policy/entropy", "finished/entropy"),
            "norms of the gradients": chart("train/grad_norm", "train/policy_grad_norm"),
            "losses": chart("train/supervised_loss", "train/policy_loss", "train/value_loss"),
            "price": chart("price", "budget/price", "eval/price"),
        },
    }


def settings_table(config: TrainConfig) -> str:
    """Every setting that is set, as in config.json, in a table of Markdown."""
    rows = [f"| {name} | {value} |" for name, value in flat(config.to_json()).items() if value is not None]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])
