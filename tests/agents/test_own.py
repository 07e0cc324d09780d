"""A person's own agent and own task, named `file.py:name`: their options, and what is refused."""

import re
from pathlib import Path

import pytest

import train
from agents.agent import AGENTS, find_agent
from agents.options.config import TrainConfig
from agents.policy.ppo import PpoConfig
from agents.policy.reinforce import ReinforceConfig
from rl_skip.core.errors import UserError
from rl_skip.tasks import TASKS, load_task

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
AGENT, TASK = f"{EXAMPLES / 'own_agent.py'}:MovingAverage", f"{EXAMPLES / 'own_task.py'}:longest_run"

# ------------------------------------------------------------------------------------------------------------- an agent


def test_what_is_no_agent_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text("number = 3\n\n\nclass Other:\n    pass\n")
    named = {"nobody": "there is no agent 'nobody'; set --agent to", f"{file}:missing": "has no agent 'missing'"}
    for name, message in {**named, f"{file}:number": "is no agent; set --agent", f"{file}:Other": "derives from Agent"}.items():
        assert train.main(["--agent", name, "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_each_agent_has_its_own_options_and_no_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "79")  # one column of options

    def helped(*flags: str) -> str:
        with pytest.raises(SystemExit) as done:
            train.main([*flags, "--help"])
        assert done.value.code == 0
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    shown = {name: helped("--agent", name) for name in (*AGENTS.names(), AGENT)}
    homes = {"--routes-per-input": {"reinforce", AGENT}, "--clip-range": {"ppo", "maskable-ppo"}, "--gate-hidden": {"gumbel"}, "--decay": {AGENT}}
    homes["--entropy-start"] = homes["--routes-per-input"] | homes["--clip-range"]
    for flag, agents in homes.items():
        assert {name for name, text in shown.items() if flag in text} == agents
    assert "--agent ppo --help shows those of PPO" in " ".join(helped().replace("│", " ").split())


def test_options_of_another_agent_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="the agent ppo takes PpoConfig, not ReinforceConfig"):
        TrainConfig(agent="ppo", agent_config=ReinforceConfig())
    assert type(TrainConfig(agent="ppo").agent_config) is PpoConfig and find_agent("ppo").config_class is PpoConfig


# --------------------------------------------------------------------------------------------------------------- a task


def own_task(tmp_path: Path, defaults: str) -> str:
    file = tmp_path / "own.py"
    file.write_text(f'from rl_skip import Task\n\n\ndef mine(path):\n    return Task("mine", ("no", "yes"), None, None, 5, defaults={defaults})\n')
    return f"{file}:mine"


def test_an_own_task_brings_its_options_and_flags_win() -> None:
    config = train.read_options(["--task", TASK, "--epochs", "3"])
    assert (config.network.layers, config.network.width, config.schedule.warmup_epochs, config.schedule.epochs) == (6, 32, 4, 3)
    assert config.pricing.price_range == (0.01, 1.0)
    assert isinstance(config.agent_config, ReinforceConfig) and config.agent_config.score == "probability"
    masked = train.read_options(["--task", TASK, "--agent", "maskable-ppo"]).agent_config
    assert isinstance(masked, PpoConfig) and masked.score == "probability"


def test_defaults_may_depend_on_what_is_given_and_leave_out_what_another_agent_has(tmp_path: Path) -> None:
    task = own_task(tmp_path, 'lambda given: {"epochs": 9 if given.get("tune") == "frozen" else 4, "minibatch": 64, "seed": 5}')
    for flags in (["--tune", "frozen"], ["--tune=frozen"]):
        config = train.read_options(["--task", task, *flags])
        assert (config.schedule.epochs, config.schedule.tune, config.seed) == (9, "frozen", 5)
    config = train.read_options(["--task", task, "--agent", "ppo"])
    assert config.schedule.epochs == 4 and isinstance(config.agent_config, PpoConfig) and config.agent_config.minibatch == 64


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ('{"epoch": 3}', "'epoch' is no option that a task can set"),
        ('{"agent": "ppo"}', "'agent' is no option that a task can set"),
        ('{"epochs": "six"}', "epochs must be a whole number, got 'six'"),
        ('{"epochs": 0}', "epochs is too small: 0"),
        ('{"price_range": 0.1}', "price_range must be a list of 2 numbers"),
        ('{"score": "beauty"}', "score must be one of accuracy, probability"),
    ],
)
def test_defaults_that_cannot_be_are_refused_by_name(defaults: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = own_task(tmp_path, defaults)
    assert train.main(["--task", task, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said and f"the defaults of the task {task}" in said
    assert not (tmp_path / "run").exists()


def test_the_defaults_of_bundled_tasks_need_no_data_and_each_agent_can_take_them() -> None:
    for agent in AGENTS.names():
        for task in TASKS.names():
            for model in ("none", "somewhere"):
                options = train.read_options(["--task", task, "--agent", agent, "--model", model])
                assert options.task == task and options.options.model == model
    assert load_task("hops").defaults is TASKS.find("hops").defaults
