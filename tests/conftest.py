"""Short real runs, each trained once and read by many tests."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import agents.policy.policy_agent
import agents.run.session
import train
from benchmarks.kill import SMALL
from rl_skip.core.task import Examples, Split, Task
from rl_skip.tasks import load_task

RUN_OPTIONS = (*SMALL, "--epochs", "4")
JUMPING_OPTIONS = (*RUN_OPTIONS, "--no-readouts")


@dataclass(frozen=True)
class FinishedRun:
    """What the run left, and in which order it asked for data."""

    folder: Path
    options: tuple[str, ...]
    calls: list[str]
    """"train", "validation", "test" as the splits were loaded, and "final report" where that began."""


def _trained(folder: Path, options: tuple[str, ...]) -> FinishedRun:
    calls: list[str] = []
    report = agents.policy.policy_agent.final_report

    def watched_task(*arguments: Any) -> Task:
        task = load_task(*arguments)

        def load(split: Split) -> Examples:
            calls.append(split)
            return task.load(split)

        return replace(task, load=load)

    def watched_report(*arguments: Any, **named: Any) -> dict[str, Any]:
        calls.append("final report")
        return report(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.run.session, "load_task", watched_task)
        patch.setattr(agents.policy.policy_agent, "final_report", watched_report)
        assert train.main(["--out", str(folder), *options]) == 0
    return FinishedRun(folder, options, calls)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Of a policy that leaves, as is the default."""
    return _trained(tmp_path_factory.mktemp("runs") / "digits", RUN_OPTIONS)


@pytest.fixture(scope="session")
def jumping_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Of a policy that jumps over layers in the middle, without readouts."""
    return _trained(tmp_path_factory.mktemp("runs") / "jumping", JUMPING_OPTIONS)
