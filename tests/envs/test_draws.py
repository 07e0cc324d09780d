"""What episodes begin with is a function of the environment's seed and the episode alone."""

import numpy as np
import pytest

from envs import LayerSkipEnv, LayerSkipVectorEnv
from envs.draws import AHEAD, Streams

EXAMPLES = 1000


def drawn_alone(seed: int, episodes: int) -> list[tuple[int, float]]:
    """One episode after the other, of one environment."""
    streams, only = Streams(seed, 1, EXAMPLES), np.zeros(1, dtype=np.int64)
    return [(int(example), float(chance)) for example, chance in ((e[0], c[0]) for e, c in (streams.draw(only) for _ in range(episodes)))]


def test_rows_that_end_at_different_times_draw_what_each_draws_alone() -> None:
    streams, ends = Streams(7, 5, EXAMPLES), np.random.default_rng(0)
    found: list[list[tuple[int, float]]] = [[] for _ in range(5)]
    for _ in range(3 * AHEAD):
        rows = (ends.random(5) < [0.1, 0.5, 1.0, 0.9, 0.0]).nonzero()[0]
        for row, example, chance in zip(rows, *streams.draw(rows), strict=True):
            found[row].append((int(example), float(chance)))
    assert len(found[2]) == 3 * AHEAD and not found[4]
    for i, of_one in enumerate(found):
        assert of_one == drawn_alone(7 + i, len(of_one))


def test_they_are_drawn_evenly() -> None:
    streams = Streams(0, 2000, 10)
    examples, chances = streams.draw(np.arange(2000))
    assert np.bincount(examples, minlength=10).min() > 150
    assert abs(chances.mean() - 0.5) < 0.03 and chances.min() >= 0 and chances.max() < 1


def test_a_new_stream_leaves_nothing_of_the_old_one() -> None:
    streams, row = Streams(0, 2, EXAMPLES), np.array([1])
    streams.draw(row)
    streams[1] = np.random.default_rng(20)
    assert [int(streams.draw(row)[0][0]) for _ in range(AHEAD + 3)] == [example for example, _ in drawn_alone(20, AHEAD + 3)]
    same = Streams(0, 2, EXAMPLES)
    same.draw(row)
    same[1] = same[1]  # the one that it has goes on
    assert int(same.draw(row)[0][0]) == drawn_alone(1, 2)[1][0]


@pytest.mark.parametrize("mode", ["SAME_STEP", "NEXT_STEP"])
def test_a_vector_shows_what_singles_show_beyond_a_block(small: dict[str, object], mode: str) -> None:
    """And prices with them, through more episodes than are drawn ahead."""
    env = LayerSkipVectorEnv(3, autoreset_mode=mode, price_range=(0.01, 1.0), **small)
    shown: list[list[tuple[int, float]]] = [[], [], []]
    env.reset(seed=5)
    while len(shown[2]) < AHEAD + 5:
        _, _, terminated, _, infos = env.step(np.array([4, 4, 1]))
        last = infos.get("final_info", infos)
        for n in terminated.nonzero()[0]:
            shown[n].append((int(last["example"][n]), float(last["price"][n])))
    for n in (0, 2):
        single, alone = LayerSkipEnv(price_range=(0.01, 1.0), **small), []
        single.reset(seed=5 + n)
        for _ in range(AHEAD + 5):
            info = single.step(4)[4]
            alone.append((info["example"], info["price"]))
            single.reset()
        assert shown[n][: len(alone)] == alone
