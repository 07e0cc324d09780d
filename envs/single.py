"""The Gymnasium environment: one example at a time passes the stack."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.convert import METADATA, Array, action_space, check_render_mode, draw, end_infos, jumps_from, observation_space, to_numpy
from envs.core import Ends
from envs.options import EnvOptions

__all__ = ["LayerSkipEnv"]


class LayerSkipEnv(gym.Env[NDArray[np.float32], np.int64]):
    """An input on its way through a stack of layers; an action is the number of layers to jump over.

    `info["action_mask"]` and `action_masks()` name the legal jumps; an illegal one is shortened to the longest legal
    one. At the end `info` has, instead, `route`, `compute`, `score`, `label`, `prediction`, `is_success` and `price`.

    Args:
        render_mode: "ansi" makes `render` return the route as a line of layers.
        options: the fields of `EnvOptions`.

    Example:
        >>> env = gym.make("envs:rl_skip/LayerSkip-v0", task="digits", layers=4, width=8, price=0.1)
        >>> observation, info = env.reset(seed=0)
        >>> info["action_mask"].tolist()
        [True, True, True]
        >>> _, reward, terminated, _, info = env.step(2)
        >>> terminated, info["route"].tolist()
        (True, [True, False, False, True])
    """

    metadata: ClassVar[dict[str, Any]] = METADATA  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.core = EnvOptions(**options).core(1, autoreset=False)
        self.observation_space = observation_space(self.core.rules)
        self.action_space = action_space(self.core.rules)
        self.np_random = self.core.streams[0]
        self._ends: Ends | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.core.streams[0] = self.np_random
        observations = to_numpy(self.core.reset())
        self._ends = None
        return observations[0], {"action_mask": self.action_masks()}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._ends is not None:
            raise gym.error.ResetNeeded("the episode has ended; call reset() before the next step()")
        step = self.core.step(jumps_from([int(action)], self.core))
        self._ends = step.ends
        info = {"action_mask": self.action_masks()} if step.ends is None else end_infos(step.ends)[0]
        return to_numpy(step.observations)[0], float(step.rewards[0]), step.ends is not None, False, info

    def action_masks(self) -> Array:
        """(J + 1,) bool, the jumps that are legal now, as sb3-contrib's MaskablePPO reads them."""
        return to_numpy(self.core.masks())[0]

    def render(self) -> str | None:
        return draw(self.core, self._ends)[0] if self.render_mode == "ansi" else None
