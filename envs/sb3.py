"""The Stable-Baselines3 vector environment."""

from functools import partial
from typing import Any

import numpy as np
from gymnasium import Wrapper
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.beginnings import beginning_of_each
from envs.convert import Array, action_space, check_render_mode, draw, end_infos, jumps_from, observation_space, to_numpy
from envs.core import Ends, SkipCore
from envs.options import EnvOptions
from envs.pictures import Camera, Frame
from envs.settings import CHANGEABLE, FIXED, Settings

__all__ = ["SB3SkipVecEnv", "make_sb3_env"]


class SB3SkipVecEnv(Settings, VecEnv):
    """A `SkipCore` for Stable-Baselines3: N examples pass the stack as one batch.

    Attributes belong to all N environments together: `get_attr` repeats them, `set_attr` sets `price`, `price_range`, `reward` or
    `score` for all. `set_options` takes "example" and "price", for the next `reset`.

    Args:
        core: the environments.
        render_mode: "ansi" makes `render` return a line of layers for each environment, "rgb_array" their pictures in one.
    """

    def __init__(self, core: SkipCore, render_mode: str | None = None) -> None:
        self.core, self.render_mode = core, check_render_mode(render_mode)
        self.camera = Camera(core) if render_mode == "rgb_array" else None
        self._ends: Ends | None = None
        super().__init__(core.num_envs, observation_space(core.rules), action_space(core.rules))

    def reset(self) -> Array:
        observations = self.core.reset(self._seeds, beginning_of_each(self._options, self.core))
        self._ends = None
        if self.camera is not None:
            self.camera.look(begun=np.arange(self.num_envs))
        self.reset_infos = [{"example": example} for example in self.core.shown.tolist()]
        self._reset_seeds()
        self._reset_options()
        return to_numpy(observations)

    def step_async(self, actions: Array) -> None:
        self._jumps = jumps_from(actions, self.core)

    def step_wait(self) -> VecEnvStepReturn:
        step = self.core.step(self._jumps)
        self._ends = step.ends
        if self.camera is not None:
            self.camera.look(step.ends)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if step.ends is not None:
            ended = end_infos(step.ends, self.core)
            for row, observation, info in zip(step.ends.rows.tolist(), to_numpy(step.ends.observations), ended, strict=True):
                infos[row] |= {"terminal_observation": observation.copy(), **info}
        return to_numpy(step.observations), to_numpy(step.rewards), to_numpy(step.terminated), infos

    def close(self) -> None:
        """There is nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in ("action_masks", "render"):
            of_one = self._mask if attr_name == "action_masks" else self._line
            return [partial(of_one, i) for i in self._get_indices(indices)]
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if indices is not None and len(list(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} belongs to all environments together; call set_attr without indices")
        if attr_name not in CHANGEABLE:
            raise AttributeError(f"{attr_name!r} cannot be set; the settings that may change are {', '.join(CHANGEABLE)}")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        if method_name == "action_masks":
            masks = to_numpy(self.core.masks())
            return [masks[i].copy() for i in self._get_indices(indices)]
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> list[Frame | None]:
        """A picture (240, 640, 3) of each environment, with the render mode "rgb_array"."""
        return [None] * self.num_envs if self.camera is None else [*self.camera.frames()]

    def render(self, mode: str | None = None) -> str | Frame | None:  # type: ignore[override]
        """The lines of all environments, or their pictures in one."""
        return "\n".join(draw(self.core, self._ends)) if (mode or self.render_mode) == "ansi" else super().render(mode)

    def _mask(self, i: int) -> Array:
        return to_numpy(self.core.masks())[i]

    def _line(self, i: int) -> str | Frame:
        return draw(self.core, self._ends)[i] if self.camera is None else self.camera.frames()[i]


class SkipMonitor(VecMonitor):
    """A monitor that hands the settings on: `env.price = 0.2` reaches the environments."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CHANGEABLE or name in FIXED:
            setattr(self.venv, name, value)
        else:
            super().__setattr__(name, value)


def make_sb3_env(num_envs: int = 64, render_mode: str | None = None, **options: Any) -> VecMonitor:
    """A vector environment ready for Stable-Baselines3, with a monitor around it that reports episode rewards.

    Args:
        num_envs: N. More make larger, faster batches; 16 to 512.
        render_mode: "ansi" makes `render` return a line of layers for each environment, "rgb_array" their pictures in one.
        options: the fields of `EnvOptions`.

    Example:
        >>> env = make_sb3_env(task="digits", num_envs=2, layers=4, width=8)
        >>> env.reset().shape
        (2, 11)
    """
    return SkipMonitor(SB3SkipVecEnv(EnvOptions(**options).core(num_envs), render_mode))
