"""What people who bring agents of their own count on: ids, settings that arrive, options of reset, autoreset modes, pictures."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RescaleObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

import envs
from envs import LayerSkipEnv, LayerSkipVectorEnv
from rl_skip import Examples, Feature, JumpRules, ModuleStack, Reward, UserError, View
from tests.envs.test_gymnasium import ID, assert_same


class Free(Reward):
    """Compute costs nothing."""

    def penalty(self, compute: torch.Tensor, price: torch.Tensor | float) -> torch.Tensor:
        return compute * 0


def test_stable_baselines3_makes_it_from_its_id(small: dict[str, Any]) -> None:
    """It asks for `rgb_array` unless told otherwise."""
    model = PPO("MlpPolicy", ID, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(16)
    assert model.num_timesteps == 16
    env = make_vec_env(ID, n_envs=2, env_kwargs=small)
    env.reset()
    assert env.render().shape[2] == 3  # type: ignore[union-attr]


# Settings


def last_price(env: Any) -> float:
    """The price that an episode which begins now is charged."""
    env.reset(seed=0)
    return env.step(env.action_space.n - 1)[4]["price"]


@pytest.mark.parametrize(
    "change",
    [
        lambda env: setattr(env, "price", 0.7),
        lambda env: setattr(env.unwrapped, "price", 0.7),
        lambda env: env.set_wrapper_attr("price", 0.7),
        lambda env: gym.wrappers.TimeLimit(env, 100).set_wrapper_attr("price", 0.7),
        lambda env: setattr(env, "price_range", (0.7, 0.7)),
    ],
    ids=["plain", "unwrapped", "set_wrapper_attr", "through a wrapper", "range"],
)
def test_a_price_that_is_set_is_charged(small: dict[str, Any], change: Any) -> None:
    env = gym.make(ID, **small)
    assert last_price(env) == pytest.approx(0.1)
    change(env)
    assert last_price(env) == pytest.approx(0.7)


def test_a_price_that_is_set_is_charged_in_every_vector(small: dict[str, Any]) -> None:
    batch = gym.make_vec(ID, num_envs=2, **small)
    batch.set_attr("price", 0.7)  # type: ignore[attr-defined]
    batch.reset(seed=0)
    assert batch.step(np.array([4, 4]))[4]["final_info"]["price"].tolist() == pytest.approx([0.7, 0.7])
    assert batch.get_attr("price") == (0.7, 0.7)  # type: ignore[attr-defined]
    for env, change in (
        (envs.make_sb3_env(2, **small), lambda env: env.set_attr("price", 0.7)),
        (envs.make_sb3_env(2, **small), lambda env: setattr(env, "price", 0.7)),
        (DummyVecEnv([lambda: LayerSkipEnv(**small)] * 2), lambda env: env.set_attr("price", 0.7)),
    ):
        change(env)
        env.reset()
        assert [info["price"] for info in env.step(np.array([4, 4]))[3]] == pytest.approx([0.7, 0.7])


def test_reward_and_score_that_are_set_are_paid(small: dict[str, Any]) -> None:
    env = LayerSkipEnv(**small, price=1.0)
    env.reset(seed=0, options={"example": 3})
    paid, info = env.step(4)[1::3]
    assert paid == pytest.approx(info["score"] - info["compute"], abs=1e-6)
    env.reward, env.score = Free, "probability"
    env.reset(options={"example": 3})
    paid, info = env.step(4)[1::3]
    assert paid == pytest.approx(info["score"], abs=1e-6) and 0 < info["score"] < 1
    with pytest.raises(UserError, match="accuracy"):
        env.score = "luck"


@pytest.mark.parametrize("price", [20.0, 0.0005, (0.01, 20.0)])
def test_a_price_that_the_observation_cannot_show_is_refused(small: dict[str, Any], price: Any) -> None:
    env, batch, sb3 = LayerSkipEnv(**small), LayerSkipVectorEnv(2, **small), envs.make_sb3_env(2, **small)
    option = {"price_range": price} if isinstance(price, tuple) else {"price": price}
    for attempt in (
        lambda: setattr(env, "price", price),
        lambda: batch.set_attr("price", price),
        lambda: sb3.set_attr("price", price),
        lambda: LayerSkipEnv(**small, **option),
        *([] if isinstance(price, tuple) else [lambda: env.reset(options={"price": price})]),
    ):
        with pytest.raises(UserError, match="0.001 to 10"):
            attempt()
    assert env.price == 0.1


@pytest.mark.parametrize("name", ["max_jump", "layers", "split", "features"])
def test_a_setting_that_cannot_change_says_so(small: dict[str, Any], name: str) -> None:
    env, batch, sb3 = LayerSkipEnv(**small), LayerSkipVectorEnv(2, **small), envs.make_sb3_env(2, **small)
    for attempt in (
        lambda: setattr(env, name, 2),
        lambda: env.set_wrapper_attr(name, 2),
        lambda: setattr(batch, name, 2),
        lambda: batch.set_attr(name, 2),
        lambda: sb3.set_attr(name, 2),
        lambda: setattr(sb3, name, 2),
        lambda: sb3.set_attr("prise", 2),
        lambda: batch.set_attr("prise", 2),
    ):
        with pytest.raises(AttributeError, match="price"):
            attempt()


def test_environments_of_a_vector_do_not_differ(small: dict[str, Any]) -> None:
    batch = LayerSkipVectorEnv(2, **small)
    batch.set_attr("price", [0.5, 0.5])
    assert batch.price == 0.5
    with pytest.raises(ValueError, match="together"):
        batch.set_attr("price", [0.5, 0.6])


# Actions and options


@pytest.mark.parametrize("action", [1.7, "3", None, True, [1], np.float64(1.0), 9])
def test_what_is_no_jump_is_refused(small: dict[str, Any], action: Any) -> None:
    env = LayerSkipEnv(**small)
    env.reset()
    with pytest.raises(ValueError, match="actions must"):
        env.step(action)


def test_an_example_and_a_price_can_be_asked_for(small: dict[str, Any]) -> None:
    env = LayerSkipEnv(**small, price_range=(0.01, 1.0))
    observation, info = env.reset(seed=0, options={"example": 17, "price": 0.5})
    assert info["example"] == 17
    assert env.step(1)[4]["example"] == 17
    end = env.step(4)[4]
    assert (end["example"], end["price"]) == (17, 0.5) and end["label"] == env.core.examples.labels[17]
    again, _ = env.reset(options={"example": 17, "price": 0.5})
    np.testing.assert_array_equal(observation, again)
    drawn = env.reset(seed=0)[1]["example"], env.reset()[1]["example"]
    env.reset(seed=0, options={"example": 1})
    assert env.reset()[1]["example"] == drawn[1]  # the random stream goes on as if it had been asked


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"exmaple": 1}, "exmaple"),
        ({"example": -1}, "example"),
        ({"example": 10_000}, "example"),
        ({"example": 1.5}, "example"),
        ({"example": [1, 2, 3]}, "example"),
        ({"price": -1.0}, "price"),
        ({"price": float("nan")}, "price"),
        ({"price": "dear"}, "price"),
        ({"reset_mask": [True, False, True]}, "reset_mask"),
        ({"reset_mask": np.zeros(1, dtype=bool)}, "reset_mask"),
    ],
)
def test_an_option_of_reset_that_means_nothing_is_refused(small: dict[str, Any], options: dict[str, Any], named: str) -> None:
    for env in (LayerSkipEnv(**small), LayerSkipVectorEnv(1, **small)):
        with pytest.raises(ValueError, match=named):
            env.reset(options=options)


def test_options_for_each_environment(small: dict[str, Any]) -> None:
    batch = LayerSkipVectorEnv(3, **small)
    _, infos = batch.reset(seed=0, options={"example": [5, 6, 7], "price": np.array([0.1, 0.2, 0.3])})
    assert infos["example"].tolist() == [5, 6, 7]
    final = batch.step(np.array([4, 4, 4]))[4]["final_info"]
    assert final["example"].tolist() == [5, 6, 7] and final["price"].tolist() == pytest.approx([0.1, 0.2, 0.3])
    sb3 = envs.make_sb3_env(2, **small)
    sb3.set_options([{"example": 5, "price": 0.2}, {"example": 6, "price": 0.3}])
    sb3.reset()
    ends = sb3.step(np.array([4, 4]))[3]
    assert [(end["example"], end["price"]) for end in ends] == [(5, pytest.approx(0.2)), (6, pytest.approx(0.3))]
    sb3.set_options([{"example": 5}, {}])
    with pytest.raises(ValueError, match="some environments"):
        sb3.reset()


def test_the_last_info_has_an_action_mask(small: dict[str, Any]) -> None:
    env = LayerSkipEnv(**small, allow_exit=True)
    env.reset(seed=0)
    info = env.step(5)[4]
    assert info["action_mask"].astype(int).tolist() == [1, 0, 0, 0, 0, 0] == env.action_masks().astype(int).tolist()


# Autoreset


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_autoreset_is_that_of_gymnasiums_own_vector(small: dict[str, Any], mode: AutoresetMode) -> None:
    singles = SyncVectorEnv([lambda: LayerSkipEnv(**small, price_range=(0.1, 1.0))] * 4, autoreset_mode=mode)
    batch = gym.make_vec(ID, num_envs=4, autoreset_mode=mode, **small, price_range=(0.1, 1.0))
    assert batch.autoreset_mode == batch.metadata["autoreset_mode"] == mode  # type: ignore[attr-defined]
    assert LayerSkipVectorEnv.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert_same(singles.reset(seed=7), batch.reset(seed=7))
    actions, ended = np.random.default_rng(0), 0
    for _ in range(40):
        chosen = actions.integers(0, 5, 4)
        expected, got = singles.step(chosen), batch.step(chosen)
        assert_same(expected, got)
        ended += int(got[2].sum())
    assert ended > 15


def test_without_autoreset_episodes_begin_where_the_mask_says(small: dict[str, Any]) -> None:
    singles = SyncVectorEnv([lambda: LayerSkipEnv(**small)] * 3, autoreset_mode=AutoresetMode.DISABLED)
    batch = LayerSkipVectorEnv(3, autoreset_mode="disabled", **small)
    assert_same(singles.reset(seed=7), batch.reset(seed=7))
    actions = np.random.default_rng(0)
    for _ in range(30):
        chosen = actions.integers(0, 5, 3)
        expected, got = singles.step(chosen), batch.step(chosen)
        assert_same(expected, got)
        if got[2].any():
            with pytest.raises(gym.error.ResetNeeded, match="reset"):
                batch.step(chosen)
            assert_same(singles.reset(options={"reset_mask": got[2].copy()}), batch.reset(options={"reset_mask": got[2]}))


def test_an_unknown_autoreset_mode_is_refused(small: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="SAME_STEP"):
        LayerSkipVectorEnv(2, autoreset_mode="sometimes", **small)


# Pictures


def colour_at(frame: np.ndarray[Any, Any], layer: int, depth: int) -> str:
    from envs import pictures as p

    x = int(p.MARGIN + (layer + 0.1) * (p.WIDTH - 2 * p.MARGIN) / depth) + 2
    return "#" + "".join(f"{value:02x}" for value in frame[p.BOX_TOP + 4, x])


def test_a_picture_shows_which_layers_ran(small: dict[str, Any]) -> None:
    from envs.pictures import AHEAD, RAN, SKIPPED

    env = gym.make(ID, render_mode="rgb_array", **small)
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (240, 640, 3) and first.dtype == np.uint8  # type: ignore[union-attr]
    env.step(2)
    after = env.render()
    assert [colour_at(after, i, 6) for i in range(6)] == [RAN, SKIPPED, SKIPPED, RAN, AHEAD, AHEAD]  # type: ignore[arg-type]
    env.step(1)
    assert [colour_at(env.render(), i, 6) for i in range(6)] == [RAN, SKIPPED, SKIPPED, RAN, SKIPPED, RAN]  # type: ignore[arg-type]


def test_pictures_of_a_vector_are_those_of_its_singles(small: dict[str, Any]) -> None:
    singles = [LayerSkipEnv(render_mode="rgb_array", **small) for _ in range(3)]
    batch = LayerSkipVectorEnv(3, render_mode="rgb_array", **small)
    batch.reset(seed=3)
    for n, env in enumerate(singles):
        env.reset(seed=3 + n)
    chosen = np.array([4, 1, 0])
    batch.step(chosen)
    for env, jump in zip(singles, chosen.tolist(), strict=True):
        env.step(jump)
    for frame, env in zip(batch.render(), singles, strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(frame, env.render())
    sb3 = envs.make_sb3_env(2, render_mode="rgb_array", **small)
    sb3.reset()
    sb3.step(np.array([4, 0]))
    assert sb3.render().ndim == 3 and len(sb3.get_images()) == 2  # type: ignore[union-attr, arg-type]


def test_the_confidence_of_readouts_is_in_the_picture() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 4) for _ in range(3)]
    stack = ModuleStack(torch.nn.Identity(), layers, torch.nn.Linear(4, 2), width=4, layer_flops=[1e5] * 3)
    examples = Examples(torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    stack.add_readouts(examples.take(slice(0, 2)).inputs)
    env = LayerSkipEnv(stack=stack, examples=examples, allow_exit=True, render_mode="rgb_array")
    env.reset(seed=0, options={"example": 4})
    assert env.camera is not None
    x = layers[0](examples.inputs[4])  # type: ignore[index]
    expected = stack.readouts.each[0](x).softmax(dim=-1).max().item() if stack.readouts is not None else 0.0
    assert env.camera.confidence[0, 0] == pytest.approx(expected, abs=1e-5)
    env.step(2)
    assert env.camera.ended[0].confidence[0] == pytest.approx(expected, abs=1e-5)


def test_bounds_are_of_use_to_a_wrapper_that_rescales(small: dict[str, Any]) -> None:
    env = RescaleObservation(gym.make(ID, **small), np.float32(-1), np.float32(1))
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation).all() and env.observation_space.contains(observation)
    assert isinstance(env.unwrapped.core.rules, JumpRules)  # type: ignore[attr-defined]


class Broken(Feature):
    name = "broken"

    def read(self, view: View) -> torch.Tensor:
        return view.compute.unsqueeze(1) * torch.nan


class Steep(Reward):
    """Finite but for answers that are worth nothing."""

    def gain(self, score: torch.Tensor) -> torch.Tensor:
        return score.log()


def test_what_is_seen_and_earned_is_finite() -> None:
    with pytest.raises(UserError, match="what an agent sees is not finite in 'broken'; mend that feature"):
        LayerSkipEnv(task="digits", layers=4, width=8, features=["hidden", Broken]).reset(seed=0)
    env = LayerSkipVectorEnv(num_envs=64, task="digits", layers=4, width=8, reward=Steep)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"environment \d+ earns -inf at a compute of 0\.\d+, which is not finite; mend score, reward or network"):
        env.step(np.full(64, env.single_action_space.n - 1))
