"""The Stable-Baselines3 vector environment."""

from functools import partial
from typing import Any

from gymnasium import Wrapper
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.convert import Array, action_space, check_render_mode, draw, end_infos, jumps_from, observation_space, to_numpy
from envs.core import Ends, SkipCore
from envs.options import EnvOptions

__all__ = ["SB3SkipVecEnv", "make_sb3_env"]


class SB3SkipVecEnv(VecEnv):
    """A `SkipCore` for Stable-Baselines3: N examples pass the stack as one batch.

    Attributes belong to all N environments together: `get_attr` repeats them, `set_attr` sets them for all.

    Args:
        core: the environments.
        render_mode: "ansi" makes `render` return a line of layers for each environment.
    """

    def __init__(self, core: SkipCore, render_mode: str | None = None) -> None:
        self.core, self.render_mode = core, check_render_mode(render_mode)
        self._ends: Ends | None = None
        super().__init__(core.num_envs, observation_space(core.rules), action_space(core.rules))

    def reset(self) -> Array:
        observations = self.core.reset(self._seeds)
        self._ends = None
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return to_numpy(observations)

    def step_async(self, actions: Array) -> None:
        self._jumps = jumps_from(actions, self.core)

    def step_wait(self) -> VecEnvStepReturn:
        step = self.core.step(self._jumps)
        self._ends = step.ends
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if step.ends is not None:
            for row, observation, info in zip(step.ends.rows.tolist(), to_numpy(step.ends.observations), end_infos(step.ends), strict=True):
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
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        if method_name == "action_masks":
            masks = to_numpy(self.core.masks())
            return [masks[i].copy() for i in self._get_indices(indices)]
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(self, wrapper_class: type[Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def render(self, mode: str | None = None) -> str | None:  # type: ignore[override]
        """The lines of all environments."""
        return "\n".join(draw(self.core, self._ends)) if (mode or self.render_mode) == "ansi" else None

    def _mask(self, i: int) -> Array:
        return to_numpy(self.core.masks())[i]

    def _line(self, i: int) -> str:
        return draw(self.core, self._ends)[i]


def make_sb3_env(num_envs: int = 64, render_mode: str | None = None, **options: Any) -> VecMonitor:
    """A vector environment ready for Stable-Baselines3, with a monitor around it that reports episode rewards.

    Args:
        num_envs: N. More make larger, faster batches; 16 to 512.
        render_mode: "ansi" makes `render` return a line of layers for each environment.
        options: the fields of `EnvOptions`.

    Example:
        >>> env = make_sb3_env(task="digits", num_envs=2, layers=4, width=8)
        >>> env.reset().shape
        (2, 11)
    """
    return VecMonitor(SB3SkipVecEnv(EnvOptions(**options).core(num_envs), render_mode))
