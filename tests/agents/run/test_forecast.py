"""How long a run takes: foreseen without a trace, corrected as it goes, and over when the run is."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import agents.run.session
from agents.agent import find_agent
from agents.options.config import NetworkConfig, PolicyConfig, ScheduleConfig, TrainConfig
from agents.run.display import Display
from agents.run.forecast import Forecast, Part, duration
from agents.run.session import Session, foresee
from agents.run.session import train as run_training
from rl_skip.core.task import Examples, Split, Task


def load(split: Split) -> Examples:
    x = torch.randn(48, 5, 3, generator=torch.Generator().manual_seed(len(split)))
    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())


TASK = Task("sums", ("minus", "plus"), load, embedding=lambda width: torch.nn.Linear(3, width), tokens=5)


def options(agent: str, **changes: object) -> TrainConfig:
    config = TrainConfig(
        agent=agent,
        network=NetworkConfig(layers=3, width=8, heads=2),
        policy=PolicyConfig(readouts=True, jumps=False),
        schedule=ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=16, eval_epochs=2),
    )
    few = {"ppo": {"num_envs": 8, "steps": 4, "minibatch": 32, "finished_rollouts": 2}, "reinforce": {"policy_epochs": 2}}
    return replace(config, agent_config=find_agent(agent).config_class(**few.get(agent, {})), **changes)


def flat(state: object) -> list[object]:
    if isinstance(state, dict):
        return [item for key in sorted(state, key=str) for item in (str(key), *flat(state[key]))]
    if isinstance(state, list | tuple):
        return [item for value in state for item in flat(value)]
    return [state.tolist()] if isinstance(state, torch.Tensor) else [state]


@pytest.mark.parametrize(("agent", "done"), [("reinforce", 0), ("reinforce", 7), ("ppo", 7), ("exits", 7)])
def test_foreseeing_leaves_no_trace(agent: str, done: int) -> None:
    left_alone, foreseen = (Session(options(agent), TASK, torch.device("cpu")) for _ in range(2))
    states = []
    for session in (left_alone, foreseen):
        torch.manual_seed(5)
        np.random.seed(5)
        for update in range(done):
            if update == session.learner.warmup_updates:
                session.learner.end_warm_up()
            session.update(update)
            session.done = update + 1
        if session is foreseen:
            foresee(session)
        session.update(done)
        states.append(flat(session.state_dict()))
    assert states[0] == states[1]


@pytest.mark.parametrize("agent", ["reinforce", "ppo", "exits"])
def test_what_was_foreseen_is_what_was_done(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Display] = []

    class Watched(Display):
        def __init__(self, *arguments: object, **named: object) -> None:
            super().__init__(*arguments, **named)  # type: ignore[arg-type]
            shown.append(self)

    monkeypatch.setattr(agents.run.session, "Display", Watched)
    said = io.StringIO()
    run_training(replace(options(agent), out=str(tmp_path / "run")), Console(file=said), task=TASK)
    (display,) = shown
    parts = display.forecast.parts
    assert {"warm-up", agent, "validation", "timing"} <= parts.keys()
    unfinished = {part.title: part.steps for part in parts.values() if part.steps}
    assert set(unfinished) <= {"pictures", "timing"}, "the last part is over with the run"
    assert 0 <= display.forecast.left() < 10
    assert "warm-up " in said.getvalue() and " left" in said.getvalue()


def test_an_estimate_follows_what_steps_really_take() -> None:
    forecast = Forecast([Part("warm-up", 100, 0.1), Part("reinforce", 100, 0.2), Part("table", 1, 5.0)])
    assert forecast.left() == pytest.approx(35) and forecast.in_words() == "about 35 s: 10 s of warm-up, 20 s of reinforce, 5 s of table"
    for _ in range(90):
        forecast.step("warm-up", 0.3)
    assert forecast.left() == pytest.approx(10 * 0.3 + 20 + 5, rel=0.02)
    for title, steps in (("warm-up", 10), ("reinforce", 100)):
        for _ in range(steps):
            forecast.step(title, 0.2)
    assert forecast.left() == pytest.approx(5.0)
    forecast.begin("a name that says nothing of time")
    forecast.begin("table")
    assert 0 < forecast.left() <= 5.0
    forecast.end()
    assert forecast.left() == 0.0


def test_durations_are_told_as_a_person_tells_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 99, 100, 3600, 7500)] == ["0 s", "99 s", "2 min", "60 min", "2 h 5 min"]
