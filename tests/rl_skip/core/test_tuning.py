"""Who decides at which batch size: the fastest way on networks and policies whose time is known, and what each way does."""

import pytest
import torch

from rl_skip.core.forward import routed_forward
from rl_skip.core.tuning import MODES, SAME, CoarsePolicy, Tuned, router_for
from rl_skip.export.policy_folder import SkipModel
from tests.rl_skip.timed import WIDTH, Clock, LeavingAfter, measured_clock, timed_stack

DEPTH = 6
INPUTS = torch.eye(3, WIDTH)  # channel b of row b is the largest, after any layer


class ByRow(LeavingAfter):
    """Row b of a batch leaves after layer b."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        layer = self.rules.layout.layer_of(observation)
        leaves = layer >= observation[:, :WIDTH].argmax(dim=1)
        return torch.stack([~leaves, *[leaves] * self.rules.max_jump], dim=1).float()


def routes(mode: str | None) -> list[str]:
    stack, policy = timed_stack(Clock(), *[0.0] * DEPTH), ByRow(Clock(), DEPTH, 0)
    router = policy if mode is None else CoarsePolicy(policy, mode)  # type: ignore[arg-type]
    return ["".join(map(str, row)) for row in routed_forward(stack, router, INPUTS).route.int().tolist()]


def test_who_decides() -> None:
    assert routes(None) == ["100000", "110000", "111000"]
    assert routes("other layers") == ["100000", "111000", "111000"]  # nobody is asked after layer 1
    assert routes("batch") == ["111000"] * 3  # until each of the rows would leave


@pytest.mark.parametrize(
    ("layer", "deciding", "mode", "milliseconds"),
    [
        (0, 0.0, "rows", (6, 6, 6, 36)),
        (2, 3.0, "other layers", (27, 24, 27, 36)),
        (4, 20.0, "everything", (130, 90, 130, 36)),
    ],
)
def test_the_fastest_way_is_taken(monkeypatch: pytest.MonkeyPatch, layer: int, deciding: float, mode: str, milliseconds: tuple[float, ...]) -> None:
    clock = measured_clock(monkeypatch)
    model = SkipModel(timed_stack(clock, *[6.0] * DEPTH), LeavingAfter(clock, DEPTH, layer, deciding), price=0.1).train()
    found = model.tune(INPUTS)
    assert (found.batch_size, found.mode, model.tuned, model.training) == (3, mode, (found,), True)
    assert found.milliseconds == pytest.approx(milliseconds)
    assert found.break_even == pytest.approx(6.0 / (6.0 + deciding))
    model.eval()(INPUTS)
    assert model.last is not None
    assert model.last.route[0].sum() == (DEPTH if mode == "everything" else layer + 1)


def test_of_two_that_are_as_fast_the_finer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"rows": 1.01, "other layers": 1.0, "batch": 1.0, "everything": 2.0, SAME: 0.9}
    monkeypatch.setattr("rl_skip.core.tuning.seconds_per_batch", lambda calls, device, repeats: {name: times[name] for name in calls})
    model = SkipModel(timed_stack(Clock(), *[0.0] * DEPTH), LeavingAfter(Clock(), DEPTH, 2), price=0.1)
    found = model.tune(INPUTS)
    assert (found.mode, found.milliseconds) == ("rows", (1010.0, 1000.0, 1000.0, 2000.0))
    layers, deciding = (2.0 - 0.9) / 0.5, (1.01 - 0.9) / 0.5  # for a whole unit of compute, of which half ran
    assert found.break_even == pytest.approx(layers / (layers + deciding))


def test_other_batch_sizes_follow_the_nearest_below() -> None:
    policy = LeavingAfter(Clock(), DEPTH, 1)
    tuned = [Tuned(size, mode, (1.0,) * 4, 0.5) for size, mode in ((2, "everything"), (8, "batch"), (32, "rows"))]  # type: ignore[arg-type]
    kinds = [type(router_for(policy, tuned, rows)).__name__ for rows in (1, 2, 7, 8, 31, 32, 500)]
    assert kinds == ["FixedRoute"] * 3 + ["CoarsePolicy"] * 2 + ["PolicyRouter"] * 2
    assert type(router_for(policy, (), 1)).__name__ == "PolicyRouter"


def test_what_was_found_is_said_in_words_that_a_card_s_reader_knows() -> None:
    assert Tuned(8, "other layers", (27.0, 24.0, 27.5, 36.04), 0.5).in_words() == (
        "In batches of 8 rows the policy decides for each row after every other layer, which was the fastest where it was measured: a batch took "
        "27 ms deciding for each row after every layer, 24 ms for each row after every other layer, 27.5 ms for all rows together, "
        "36 ms without the policy, every layer run. Deciding for each row is faster than running every layer up to a compute of 0.50."
    )
    beginnings = [Tuned(1, mode, (1.0,) * 4, 0.5).in_words().partition(", which was")[0] for mode in MODES]
    assert len(set(beginnings)) == len(MODES) and all(said.startswith("In batches of 1 row the policy ") for said in beginnings)
