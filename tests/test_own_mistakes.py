"""Mistakes in a person's own code: each is told in one line, before anything is written, or in the place where it is made."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from envs import EnvOptions
from rl_skip import Decision, Feature, FixedRoute, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, Router, RoutingState, UserError, View
from rl_skip.cli.main import main as rl_skip_main
from rl_skip.core.features import find_features
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Examples, Task
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.compare.comparison import compared
from rl_skip.measure.compare.measured import BaselineRecord
from rl_skip.measure.evaluation import evaluate
from train import main

WIDTH, DEPTH, ROWS = 6, 5, 9
TINY = ["--layers", "4", "--width", "16", "--heads", "2", "--warmup-epochs", "1", "--epochs", "1", "--train-rows", "256"]
MINE = """
import torch
from dataclasses import dataclass
from agents import Agent, AgentConfig, Reinforce, ReinforceConfig
from rl_skip import BaselineRecord, Examples, Feature, MeasuredBaseline, Reward, Task

class BadShape(Feature):
    name = "bad_shape"
    def read(self, view): return view.hidden

class OneDimension(Feature):
    name = "one_dimension"
    def read(self, view): return view.compute

class NotFinite(Feature):
    name = "not_finite"
    def read(self, view): return view.compute.unsqueeze(1) / 0 * 0

class NoMemory(Feature):
    name = "no_memory"
    def read(self, view): return view.memory[:, :1]

class Nameless(Feature):
    def read(self, view): return view.compute.unsqueeze(1)

class Dotted(Feature):
    name = "my.norm"
    def read(self, view): return view.compute.unsqueeze(1)

class Hidden(Feature):
    name = "hidden"
    def size(self, width): return width
    def read(self, view): return view.hidden ** 3

class Picky(Feature):
    name = "picky"
    def __init__(self, power): self.power = power
    def read(self, view): return view.compute.unsqueeze(1) ** self.power

class Raises(Reward):
    def penalty(self, compute, price): raise RuntimeError("no such price")

class WrongSignature(Reward):
    def penalty(self, compute): return compute

class Infinite(Reward):
    def gain(self, score): return score / 0

class Half(Agent):
    pass

class NotAConfig(Reinforce):
    config_class = dict

@dataclass(frozen=True)
class ClashConfig(ReinforceConfig):
    epochs: int = 3

class Clash(Reinforce):
    config_class = ClashConfig

def gives(what):
    return MeasuredBaseline(BaselineRecord("mine", "mine"), what)

raises = gives(lambda bench: {}["x"])
a_list = gives(lambda bench: [torch.ones(4)])
no_layer_0 = gives(lambda bench: {"none": torch.zeros(4, dtype=torch.bool)})
wrong_depth = gives(lambda bench: {"long": torch.ones(9, dtype=torch.bool)})
short = gives(lambda bench: {1: torch.tensor([True, True, False, False])})

def beside(path):
    def load(split):
        x = torch.randn(80, 5, 3, generator=torch.Generator().manual_seed(len(split)))
        return Examples(x, (x.sum(dim=(1, 2)) > 0).long())
    defaults = {"feature": ("hidden", "mine.py:Fine"), "reward": "mine.py:Fair"}
    return Task("beside", ("minus", "plus"), load, lambda width: torch.nn.Linear(3, width), 5, defaults=defaults)

class Fine(Feature):
    name = "fine"
    def read(self, view): return view.hidden[:, :1]

class Fair(Reward):
    def penalty(self, compute, price): return price * compute ** 2
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def refused(capsys: pytest.CaptureFixture[str], out: Path, *flags: str) -> str:
    assert main([*TINY, "--out", str(out), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.strip().splitlines()) == 1
    assert not out.exists(), "nothing may be written"
    return said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BadShape", r"the feature 'bad_shape' must give (2, 1) numbers, got shape (2, 16)"),
        ("OneDimension", "the feature 'one_dimension' must give (2, 1) numbers, got shape (2,)"),
        ("NotFinite", "the policy sees numbers that are not finite"),
        ("NoMemory", "the feature 'no_memory' failed: TypeError"),
        ("Nameless", "needs a name of letters, digits and underscores, got None"),
        ("Dotted", "needs a name of letters, digits and underscores, got 'my.norm'"),
        ("Hidden", "there is another feature 'hidden' already; call yours by another name"),
        ("Picky", "Picky failed: TypeError"),
    ],
)
def test_a_feature(mine: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    assert expected in refused(capsys, mine.parent / "run", "--feature", f"{mine}:{name}")


def test_a_memory_that_the_stack_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the stack has no working memory" in refused(capsys, tmp_path / "run", "--feature", "memory")


@pytest.mark.parametrize(
    ("name", "expected"), [("Raises", "no such price"), ("WrongSignature", "TypeError"), ("Infinite", "must earn a finite number")]
)
def test_a_reward(mine: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    said = refused(capsys, mine.parent / "run", "--reward", f"{mine}:{name}")
    assert f"the reward {mine}:{name} failed: " in said and expected in said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Half", "does not say how it does"),
        ("NotAConfig", "does not derive from AgentConfig"),
        ("Clash", "has an option 'epochs', which there is already"),
    ],
)
def test_an_agent(mine: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str) -> None:
    assert expected in refused(capsys, mine.parent / "run", "--agent", f"{mine}:{name}")


def test_baselines_and_a_route_that_the_policy_may_not_take(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(mine.parent / "run")]) == 0
    for name, expected in (
        ("raises", "the baseline mine failed: KeyError: 'x'"),
        ("a_list", "the baseline mine returned list, not a dictionary"),
        ("no_layer_0", "layer 0 always runs, and a route leaves it out"),
        ("wrong_depth", "a route of this network has 4 layers, got 9"),
    ):
        assert rl_skip_main(["compare", str(mine.parent / "run"), "--rows", "40", "--baseline", f"{mine}:{name}"]) == 2
        assert expected in capsys.readouterr().err
    assert rl_skip_main(["compare", str(mine.parent / "run"), "--baselines", str(mine.parent / "nothing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert rl_skip_main(["compare", str(mine.parent / "run"), "--baseline", "oracle"]) == 2
    assert "'oracle' is part of every comparison" in capsys.readouterr().err
    assert rl_skip_main(["compare", str(mine.parent / "run"), "--rows", "40", "--baseline", f"{mine}:short", "--json"]) == 0
    curves = {curve["name"]: curve for curve in json.loads(capsys.readouterr().out)["curves"]}
    assert 0.5 < curves["mine"]["points"][0]["compute"] < 0.51, "two layers of four, and the readout that answers after them"


def test_files_in_a_tasks_defaults_are_looked_for_beside_it(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = mine.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main([*TINY, "--task", "../mine.py:beside", "--out", "run"]) == 0
    config = json.loads((elsewhere / "run" / "config.json").read_text())
    assert config["policy"]["feature"] == ["hidden", f"{mine.resolve()}:Fine"] and config["pricing"]["reward"] == f"{mine.resolve()}:Fair"
    policy = json.loads((elsewhere / "run" / "policy" / "policy.json").read_text())
    assert policy["reward"] == "Fair", "another reward must not be called the usual one"
    card = (elsewhere / "run" / "policy" / "README.md").read_text()
    assert "features=[fine]" in card and "stack" in card
    assert main(["--resume", "run", "--allow-code", "--feature", "hidden", "--feature", "../mine.py:Fine"]) == 0, "what the run has may be said again"


def test_info_describes_an_export_with_a_feature_that_is_not_known(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(mine.parent / "run"), "--feature", "hidden", "--feature", f"{mine}:Fine"]) == 0
    assert rl_skip_main(["export", str(mine.parent / "run"), str(mine.parent / "copy"), "--allow-code"]) == 0
    capsys.readouterr()
    assert rl_skip_main(["info", str(mine.parent / "copy"), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert {"name": "fine", "size": 1} in described["policy"]["observation"]["features"] and described["policy_weights"] > 0
    with pytest.raises(UserError, match="is a run; name the policy in it"):
        rl_skip.load(mine.parent / "run")


def make_stack() -> ModuleStack:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
    return ModuleStack(nn.Identity(), layers, nn.Linear(WIDTH, 2), width=WIDTH, layer_flops=[1000.0] * DEPTH)


class Norm(Feature):
    name = "norm"

    def read(self, view: View) -> Tensor:
        return view.hidden.norm(dim=1, keepdim=True) - view.previous("norm", view.hidden[:, :1])


def test_a_fork_goes_its_own_way() -> None:
    stack, x, everyone = make_stack(), torch.randn(ROWS, WIDTH), torch.arange(ROWS)
    rules = JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, features=(Norm(),)))

    def advanced(state: RoutingState, layer: int) -> Tensor:
        state.follow(everyone, Decision(torch.full_like(everyone, layer)))
        state.visit(layer)
        return state.observe(everyone)

    with torch.no_grad():
        alone, forked = (RoutingState(stack, rules, x, 0.1) for _ in range(2))
        for state in (alone, forked):
            state.visit(0)
            state.observe(everyone)
        other = forked.fork()
        advanced(other, 2)
        other.replace(torch.tensor([0]), RoutingState(stack, rules, x[:1], 9.0))
        assert torch.equal(advanced(forked, 1), advanced(alone, 1)) and torch.equal(forked.price, alone.price)


class Stays(Router):
    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        return Decision(torch.full_like(rows, i))


class Beyond(Router):
    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        return Decision(torch.full_like(rows, DEPTH + 1), answers=torch.zeros(len(rows), 2))


class OneForAll(Router):
    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        return Decision(torch.full((1,), i + 1))


@pytest.mark.parametrize(
    ("router", "expected"),
    [(Stays(), "Stays sent rows to layers that do not come after"), (Beyond(), "or beyond 5"), (OneForAll(), "a next layer for each of 9 rows")],
)
def test_a_router(router: Router, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        routed_forward(make_stack(), router, torch.randn(ROWS, WIDTH))
    with pytest.raises(TypeError, match="an instance of a subclass of rl_skip.Router"):
        routed_forward(make_stack(), type(router), torch.randn(ROWS, WIDTH))  # type: ignore[arg-type]


def test_a_route_for_each_row_is_evaluated_in_batches_and_found_where_the_book_lacks_it() -> None:
    stack, x = make_stack(), torch.randn(40, WIDTH)
    examples = Examples(x, torch.randint(2, (40,)))
    task = Task("two", ("a", "b"), lambda _split: examples, lambda width: nn.Linear(WIDTH, width), 1)
    routes = torch.rand(40, DEPTH) < 0.5
    routes[:, 0] = True
    expected = evaluate(stack, routes, task, examples, batch_size=7)
    assert torch.equal(evaluate(stack, FixedRoute(routes), task, examples, batch_size=16).correct, expected.correct)
    correct, compute = RouteBook(stack, task, examples, allow_exit=False).follow(routes)  # some leave before the last layer
    assert not routes[:, -1].all()
    assert torch.equal(correct, expected.correct)
    torch.testing.assert_close(compute, expected.compute_by_row)


def test_classes_and_instances_are_taken_alike(tmp_path: Path) -> None:
    stack, layout = make_stack(), ObservationLayout(WIDTH, DEPTH, features=(*find_features(["hidden"]), Norm()))
    rl_skip.save(tmp_path / "policy", JumpPolicy(JumpRules.reaching(layout)), stack=stack, price=0.1)
    for features in ([Norm], [Norm()]):
        assert rl_skip.load(tmp_path / "policy", make_stack(), features=features).rules.layout == layout  # type: ignore[arg-type]
    core = EnvOptions(task="digits", layers=4, width=8, features=[Norm, "hidden"], reward=rl_skip.Reward).core(2)
    assert [feature.name for feature in core.rules.layout.features] == ["norm", "hidden"]
    with pytest.raises(UserError, match=r"set features=\['hidden'\]"):
        EnvOptions(task="digits", features="hidden").core(2)


def test_a_penalty_may_be_a_number() -> None:
    class Flat(rl_skip.Reward):
        def penalty(self, compute: Tensor, price: Tensor | float) -> float:  # type: ignore[override]
            return 0.25

    core = EnvOptions(task="digits", layers=4, width=8, reward=Flat).core(3)
    core.reset(seeds=[0, 1, 2])
    step = core.step(torch.full((3,), core.rules.max_jump))
    assert step.ends is not None
    torch.testing.assert_close(step.rewards, step.ends.scores - 0.25)


def test_two_baselines_of_one_name_and_runs_of_two_rewards_are_refused() -> None:
    with pytest.raises(UserError, match=r"must be #rrggbb, got 'reddish'"):
        BaselineRecord("mine", "mine", colour="reddish")
    assert compared.__doc__
