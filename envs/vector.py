"""The Gymnasium vector environment: N examples pass the stack as one batch."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.convert import METADATA, Array, action_space, check_render_mode, draw, end_infos, jumps_from, observation_space, to_numpy
from envs.core import Ends
from envs.options import EnvOptions

__all__ = ["LayerSkipVectorEnv"]


class LayerSkipVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], Array]):
    """N of `LayerSkipEnv` in one batch: with seed s they do what single environments with seeds s, s + 1, … do.

    An environment whose episode ends begins the next one in the same step (`AutoresetMode.SAME_STEP`): its last
    observation and info are in `infos["final_obs"]` and `infos["final_info"]`.

    Args:
        num_envs: N.
        render_mode: "ansi" makes `render` return a line of layers for each environment.
        options: the fields of `EnvOptions`.
    """

    metadata: ClassVar[dict[str, Any]] = {**METADATA, "autoreset_mode": AutoresetMode.SAME_STEP}  # type: ignore[misc]

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **options: Any) -> None:
        self.render_mode = check_render_mode(render_mode)
        self.core, self.num_envs = EnvOptions(**options).core(num_envs), num_envs
        self.single_observation_space = observation_space(self.core.rules)
        self.single_action_space = action_space(self.core.rules)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ends: Ends | None = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins an episode in every environment; `seed` is one number s for s, s + 1, …, or one for each."""
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise ValueError(f"reset needs one seed, or one for each of {self.num_envs} environments, got {len(seeds)}")
        super().reset(seed=None if seeds is None else seeds[0])
        self._ends = None
        return to_numpy(self.core.reset(seeds)), self._mask_info()

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], Array, Array, Array, dict[str, Any]]:
        step = self.core.step(jumps_from(actions, self.core))
        self._ends = step.ends
        infos = self._mask_info()
        if step.ends is not None:
            infos |= self._final(step.ends)
        terminated = to_numpy(step.terminated)
        return to_numpy(step.observations), to_numpy(step.rewards.double()), terminated, np.zeros_like(terminated), infos

    def action_masks(self) -> Array:
        """(N, J + 1) bool, the jumps that are legal now."""
        return to_numpy(self.core.masks())

    def render(self) -> tuple[str, ...] | None:
        return tuple(draw(self.core, self._ends)) if self.render_mode == "ansi" else None

    def _mask_info(self) -> dict[str, Any]:
        return {"action_mask": self.action_masks(), "_action_mask": np.ones(self.num_envs, dtype=bool)}

    def _final(self, ends: Ends) -> dict[str, Any]:
        """The ended episodes in the form of Gymnasium's own vector environments."""
        infos: dict[str, Any] = {}
        for row, observation, info in zip(ends.rows.tolist(), to_numpy(ends.observations), end_infos(ends), strict=True):
            infos = self._add_info(infos, {"final_obs": observation.copy(), "final_info": info}, row)
        return infos
