"""An agent from anywhere, measured on every row of a split, beside what a person could run in its place."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from envs.convert import action_space, observation_space
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpRules
from rl_skip.core.routers import only_way
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.task import Split
from rl_skip.measure.evaluation import Evaluation, best_fixed_route
from rl_skip.measure.evaluation import evaluate as measured
from rl_skip.measure.runs import load_run, read_run

__all__ = ["Agent", "AgentEvaluation", "AgentRouter", "evaluate"]

SEARCH_ROWS = 1000
"""Validation rows on which the best fixed route is searched."""


class Predictor(Protocol):
    """An agent of Stable-Baselines3 or sb3-contrib, or one that is asked like it; where it takes `action_masks`, they are the legal jumps."""

    def predict(self, observation: NDArray[np.float32], /, *, deterministic: bool) -> tuple[Any, Any]:
        """Observations (R, S) → jumps (R,), and None, which is the memory of an agent that has one."""
        ...


Agent = Predictor | Callable[[NDArray[np.float32]], Any]
"""With a method `predict`, as Stable-Baselines3's agents have; or a function, observations (R, S) → jumps (R,). Either may take `action_masks`,
the legal jumps (R, J + 1)."""


class AgentRouter(Router):
    """Rows go where an agent says, as in the environment: an illegal jump becomes the longest legal one.

    Args:
        agent: who decides.
        rules: what it may do and see.
        flops: operations of one of its decisions, the observation not included; None: those of its matrix products in PyTorch are counted once.
    """

    def __init__(self, agent: Agent, rules: JumpRules, flops: float | None = None) -> None:
        self.agent, self.rules = agent, rules
        for name, own in (("observation_space", observation_space(rules)), ("action_space", action_space(rules))):
            its = getattr(agent, name, own)
            if its != own:
                raise UserError(
                    f"the agent's {name} is {_brief(its)}, the run's {_brief(own)}; train it in an environment of the run, run=…, and where a "
                    "wrapper changed that, give a function that does the same: lambda observations: agent.predict(changed(observations))[0]"
                )
        self.masked = _takes_masks(agent.predict if hasattr(agent, "predict") else agent)
        find = getattr(agent, "get_vec_normalize_env", None)
        statistics = find() if callable(find) else None
        self.normalized: Callable[[Any], Any] | None = getattr(statistics, "normalize_obs", None) if getattr(statistics, "norm_obs", False) else None
        self.flops = self._counted() if flops is None else flops

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        rules = self.rules
        assert rules is not None
        if not rules.choices[i]:
            return only_way(rules, i, rows)
        jumps = self._asked(state.observe(rows).float().cpu().numpy(), i)
        following = rules.next_layer(i, torch.as_tensor(jumps, device=rows.device))
        return Decision(following, rules.layout.flops + self.flops, read=rules.layout.reads)

    def _asked(self, observations: NDArray[np.float32], i: int) -> NDArray[np.int64]:
        """(R,), the jumps that the agent chooses after layer `i`."""
        assert self.rules is not None
        masks = {"action_masks": self.rules.legal[i].expand(len(observations), -1).numpy().copy()} if self.masked else {}
        if self.normalized is not None:
            observations = self.normalized(observations)
        if hasattr(self.agent, "predict"):
            jumps, memory = self.agent.predict(observations, deterministic=True, **masks)
            if memory is not None:
                raise UserError("the agent remembers earlier observations, and is asked for each decision by itself here; play it in the environment")
        else:
            jumps = self.agent(observations, **masks)
        jumps, expected = np.asarray(jumps), observations.shape[:1]
        if jumps.shape != expected or jumps.dtype.kind not in "iu":
            raise UserError(f"an agent gives a whole number for each of {expected[0]} observations, got shape {jumps.shape} of {jumps.dtype}")
        if jumps.min() < 0 or jumps.max() > self.rules.max_jump:
            raise UserError(f"an agent's jumps lie in 0..{self.rules.max_jump}, got {jumps.min()} to {jumps.max()}")
        return jumps.astype(np.int64)

    def _counted(self) -> float:
        assert self.rules is not None
        low, _ = self.rules.layout.bounds()
        with FlopCounterMode(display=False) as counter:
            self._asked(np.clip(np.zeros((1, len(low)), dtype=np.float32), low.numpy(), None), 0)
        return float(counter.get_total_flops())


def _brief(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Box):
        return f"Box of shape {space.shape} from {space.low.min():g} to {space.high.max():g}"
    return f"{space}" if isinstance(space, spaces.Discrete) else f"{type(space).__name__} of shape {space.shape}"


def _takes_masks(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter `action_masks` that can be named and is not given yet."""
    try:
        found = inspect.signature(function).parameters.get("action_masks")
    except (TypeError, ValueError):  # it does not tell
        return False
    given = isinstance(function, partial) and "action_masks" in function.keywords
    return found is not None and found.kind is not inspect.Parameter.POSITIONAL_ONLY and not given


@dataclass(frozen=True)
class AgentEvaluation:
    """How an agent does on every row of a split, beside what could be run in its place; as text, a table."""

    split: Split
    score_name: str
    ways: dict[str, Evaluation]
    """The agent, the run's own policy, full depth, and the best fixed route within the agent's compute, searched on validation data."""
    flops: float
    """Operations that one of the agent's decisions was charged, the observation not included."""

    def __str__(self) -> str:
        first = next(iter(self.ways.values()))
        lines = [f"{first.rows} {self.split} rows at price {first.price:.3g}", f"{'':<20}{self.score_name:>16}{'compute':>10}{'reward':>9}"]
        lines += [f"{name:<20}{way.score:>16.1%}{way.compute:>10.3f}{way.reward:>9.3f}" for name, way in self.ways.items()]
        return "\n".join(lines)


def evaluate(
    agent: Agent,
    run: str | Path,
    split: Split = "test",
    *,
    price: float | None = None,
    flops: float | None = None,
    data: str | None = None,
    allow_code: bool = False,
) -> AgentEvaluation:
    """Plays every row of a split once, beside full depth, the best fixed route and the run's own policy.

    An agent that was trained on `run=` can be measured so. To be exported it would have to be a `JumpPolicy`, whose network is fixed.

    Args:
        agent: one of Stable-Baselines3's or sb3-contrib's, or a function, observations (R, S) float32 → jumps (R,). What a `VecNormalize` around its
            environment has counted is applied; an agent that was loaded has it no more, and must be loaded with that environment.
        run: the folder of a finished run, whose network it decides for; "hops-v0": that of `rl_skip/Hops-v0`.
        split: whose rows.
        price: what compute costs, and what is shown; None: the run's.
        flops: operations of one of the agent's decisions; None: counted.
        data: where the task's data are, if not where the run found them.
        allow_code: whether the Python files that the run names may be run, those of its own task, stack, reward and features.

    Raises:
        UserError: if there is no such run, or the agent does not fit it.
    """
    if split not in get_args(Split):
        raise UserError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    model, task = load_run(run, data=data, allow_code=allow_code)
    stack, rules, reward = model.stack, model.rules, read_run(run, allow_code=allow_code).reward
    price = model.price if price is None else price
    examples = task.load(split)
    router = AgentRouter(agent, rules, flops)
    ways = {"agent": measured(stack, router, task, examples, price=price, reward=reward)}
    ways["the run's policy"] = measured(stack, model.policy, task, examples, price=price, reward=reward)
    everything = torch.ones(stack.depth, dtype=torch.bool)
    ways["full depth"] = measured(stack, everything, task, examples, price=price, reward=reward)
    validation = task.load("validation").some(SEARCH_ROWS)
    fixed = best_fixed_route(stack, task, validation, max_compute=ways["agent"].compute, allow_exit=rules.allow_exit)
    ways["best fixed route"] = measured(stack, fixed, task, examples, price=price, reward=reward)
    return AgentEvaluation(split, task.score_name, ways, router.flops)
