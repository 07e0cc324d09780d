"""The Gymnasium vector environment: N examples pass the stack as one batch."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.beginnings import beginning_of
from envs.convert import METADATA, Array, action_space, check_render_mode, draw, end_columns, jumps_from, observation_space, to_numpy
from envs.core import Ends
from envs.options import EnvOptions
from envs.pictures import Camera, Frame
from envs.settings import CHANGEABLE, Settings
from rl_skip.core.errors import UserError

__all__ = ["LayerSkipVectorEnv"]


class LayerSkipVectorEnv(Settings, VectorEnv[NDArray[np.float32], NDArray[np.int64], Array]):
    """N of `LayerSkipEnv` in one batch: with seed s they do what single environments with seeds s, s + 1, … do.

    Infos have the form of Gymnasium's own vector environments. With `AutoresetMode.SAME_STEP` an environment whose episode
    ends begins the next one in the same step: its last observation and info are in `infos["final_obs"]` and
    `infos["final_info"]`. `price`, `price_range`, `reward` and `score` may be set between steps, for all environments together.

    Args:
        num_envs: N.
        render_mode: "ansi" makes `render` return a line of layers for each environment, "rgb_array" a picture (240, 640, 3).
        autoreset_mode: what follows the end of an episode, as `AutoresetMode` or its value: the next one in the same step, in the next step, or
            once `reset(options={"reset_mask": mask})` is called.
        options: the fields of `EnvOptions`.
    """

    metadata: ClassVar[dict[str, Any]] = {**METADATA, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(
        self, num_envs: int = 1, render_mode: str | None = None, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP, **options: Any
    ) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}  # type: ignore[misc]
        self.core, self.num_envs = EnvOptions(**options).core(num_envs, autoreset_mode=self.autoreset_mode), num_envs
        self.single_observation_space = observation_space(self.core.rules)
        self.single_action_space = action_space(self.core.rules)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.camera = Camera(self.core) if render_mode == "rgb_array" else None
        self._ends: Ends | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins an episode in every environment, or in some.

        Args:
            seed: one number s for s, s + 1, …, or one for each.
            options: "example", a row of the examples, and "price": one number, or one for each environment; "reset_mask": (N,) bool, the environments
                that begin an episode. What is not given is drawn.

        Returns:
            The observations of all environments, and the infos of those that begin an episode.
        """
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"reset needs one seed, or one for each of {self.num_envs} environments, got {len(seeds)}")
        beginning = beginning_of(options, self.core)
        super().reset(seed=None if seeds is None else seeds[0])
        observations = to_numpy(self.core.reset(seeds, beginning))
        self._ends = None
        begun = np.ones(self.num_envs, dtype=bool)
        if beginning.rows is not None:
            begun = np.zeros_like(begun)
            begun[to_numpy(beginning.rows)] = True
        if self.camera is not None:
            self.camera.look(begun=begun)
        return observations, self._under_way(begun)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], Array, Array, Array, dict[str, Any]]:
        step = self.core.step(jumps_from(actions, self.core))
        self._ends = step.ends
        if self.camera is not None:
            self.camera.look(step.ends)
        terminated = to_numpy(step.terminated)
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        infos = self._under_way(np.ones_like(terminated) if same_step else ~terminated)
        if step.ends is not None:
            infos = self._with_ends(step.ends, infos)
        return to_numpy(step.observations), to_numpy(step.rewards).astype(np.float64), terminated, np.zeros_like(terminated), infos

    def action_masks(self) -> Array:
        """(N, J + 1) bool, the jumps that are legal now."""
        return to_numpy(self.core.masks())

    def render(self) -> tuple[str, ...] | tuple[Frame, ...] | None:
        if self.camera is not None:
            return tuple(self.camera.frames())
        return tuple(draw(self.core, self._ends)) if self.render_mode == "ansi" else None

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What every environment has under that name, or answers when it is called; as of `gymnasium.vector.SyncVectorEnv`."""
        if name == "action_masks":
            return tuple(self.action_masks())
        value = getattr(self, name)
        return tuple(value(*args, **kwargs) if callable(value) and name not in CHANGEABLE else value for _ in range(self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, repeated for each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Sets one of the settings for all environments.

        Args:
            name: "price", "price_range", "reward" or "score".
            values: the value, or a list of N equal ones; a tuple is a range of prices.

        Raises:
            AttributeError: if that is no setting, or one that cannot change.
            ValueError: if the environments would differ.
        """
        if name not in CHANGEABLE:
            raise AttributeError(f"{name!r} cannot be set; the settings that may change are {', '.join(CHANGEABLE)}")
        if isinstance(values, list):
            if len(values) != self.num_envs or any(value != values[0] for value in values):
                raise ValueError(f"{name} belongs to all {self.num_envs} environments together; set one value")
            values = values[0]
        setattr(self, name, values)

    def _under_way(self, there: NDArray[np.bool_]) -> dict[str, Any]:
        """The infos of environments `there`, (N,), in which an episode goes on."""
        if not there.any():
            return {}
        masks, shown = self.action_masks(), self.core.shown.copy()
        if not there.all():
            masks[~there], shown[~there] = False, 0
        return {"action_mask": masks, "_action_mask": there, "example": shown, "_example": there.copy()}

    def _with_ends(self, ends: Ends, infos: dict[str, Any]) -> dict[str, Any]:
        """Besides, the episodes that ended: as infos of their own where others have begun, else among those of the environments."""
        rows, ended = to_numpy(ends.rows), np.zeros(self.num_envs, dtype=bool)
        ended[rows] = True
        follows = self.autoreset_mode == AutoresetMode.SAME_STEP
        last: dict[str, Any] = {} if follows else infos
        for name, values in end_columns(ends, self.core).items():
            if name in last:
                last[f"_{name}"][rows] = True
            else:
                last[name], last[f"_{name}"] = np.zeros((self.num_envs, *values.shape[1:]), dtype=values.dtype), ended.copy()
            last[name][rows] = values
        if not follows:
            return last
        observations = np.full(self.num_envs, None, dtype=object)
        for row, observation in zip(rows.tolist(), to_numpy(ends.observations), strict=True):
            observations[row] = observation
        return infos | {"final_obs": observations, "_final_obs": ended, "final_info": last, "_final_info": ended.copy()}


def _mode(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode[mode.upper()] if isinstance(mode, str) and mode.upper() in AutoresetMode.__members__ else AutoresetMode(mode)
    except ValueError:
        raise UserError(f"the autoreset mode is one of {', '.join(AutoresetMode.__members__)}, got {mode!r}; set autoreset_mode") from None
