"""The Gymnasium environment: one example at a time passes the stack."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from envs.beginnings import beginning_of
from envs.convert import METADATA, Array, action_space, check_render_mode, draw, end_infos, jumps_from, observation_space, to_numpy
from envs.core import Ends
from envs.options import EnvOptions
from envs.pictures import Camera, Frame
from envs.settings import Settings

__all__ = ["LayerSkipEnv"]


class LayerSkipEnv(Settings, gym.Env[NDArray[np.float32], np.int64]):
    """An input on its way through a stack of layers; an action is the number of layers to jump over.

    `info["action_mask"]` and `action_masks()` name the legal jumps, `info["example"]` the row that is shown; an illegal jump is
    shortened to the longest legal one. At the end `info` has, besides, `route`, `compute`, `score`, `label`, `prediction`,
    `is_success` and `price`.

    `price`, `price_range`, `reward` and `score` are attributes that may be set between steps: `env.unwrapped.price = 0.2`,
    or `env.set_wrapper_attr("price", 0.2)`.

    Args:
        render_mode: "ansi" makes `render` return the route as a line of layers, "rgb_array" a picture (240, 640, 3).
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
        self.core = EnvOptions(**options).core(1, autoreset_mode=AutoresetMode.DISABLED)
        self.observation_space = observation_space(self.core.rules)
        self.action_space = action_space(self.core.rules)
        self.np_random = self.core.streams[0]
        self.camera = Camera(self.core) if render_mode == "rgb_array" else None
        self._ends: Ends | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: of the random stream from here on.
            options: "example", a row of the examples, and "price", of this episode; what is not given is drawn.
        """
        beginning = beginning_of(options, self.core)
        super().reset(seed=seed)
        self.core.streams[0] = self.np_random
        observations = to_numpy(self.core.reset(beginning=beginning))
        self._ends = None
        if self.camera is not None:
            self.camera.look()
        return observations[0], self._info()

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        step = self.core.step(jumps_from([action], self.core))
        self._ends = step.ends
        if self.camera is not None:
            self.camera.look(step.ends)
        info = self._info() if step.ends is None else end_infos(step.ends, self.core)[0]
        return to_numpy(step.observations)[0], float(step.rewards[0]), step.ends is not None, False, info

    def action_masks(self) -> Array:
        """(J + 1,) bool, the jumps that are legal now, as sb3-contrib's MaskablePPO reads them."""
        return to_numpy(self.core.masks())[0]

    def render(self) -> str | Frame | None:
        if self.camera is not None:
            return self.camera.frames()[0]
        return draw(self.core, self._ends)[0] if self.render_mode == "ansi" else None

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks(), "example": int(self.core.shown[0])}
