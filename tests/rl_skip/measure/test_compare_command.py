"""The command on a real run: what it writes and prints, which baselines it reads, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import agents.baselines.compare
import train
from rl_skip.cli.main import main
from rl_skip.core.seal import SEAL
from rl_skip.measure.compare import command
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import Curve, Point, save_curve
from rl_skip.measure.compare.plan import Planned, write_plan
from rl_skip.measure.compare.rows import Rows
from rl_skip.tasks import load_task

ROWS = {"validation": 359, "test": 360}
LEAVING = ["one threshold for all exits", "a threshold for each exit", "a threshold for each class", "patience"]
"""What needs readouts to leave by."""


@pytest.fixture
def run(finished_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


def save_baseline(folder: Path, name: str, compute: float, right: float = 1.0, seed: int = 0, missing: int = 0) -> None:
    """A baseline that is right on a share of the rows, the first ones."""
    points = []
    for rows in (ROWS["validation"], ROWS["test"] - missing):
        correct = (torch.arange(rows) < right * rows).float()
        points.append((Point(f"budget {compute}", None, compute, correct, torch.full((rows,), compute)),))
    record = BaselineRecord(name, f"{name} network", about="made up", advice=f"train it with train.py --agent {name}", trained=True)
    save_curve(folder, Curve(record, seed, *points))


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 2
    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if not re.search(r" rows, \d+ s$", line)]  # besides how far a slow machine has come
    assert captured.out == "" and len(told) == 1
    return captured.err


def test_it_writes_and_prints_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_baseline(run / "baselines" / "static-0.5", "static", 0.5)
    save_baseline(run / "baselines" / "static-0.25", "static", 0.25, right=0.1)
    (run / "baselines" / "gumbel-0.5").mkdir()
    assert main(["compare", str(run), "--budgets", "0.3", "0.6", "--device", "cpu"]) == 0
    table, said = capsys.readouterr().out, json.loads((run / "compare.json").read_text())
    report = (run / "compare.md").read_text()
    titles = ["policy", "full depth", "best fixed route", *LEAVING, "static network", "random routes", "shuffled-routes control", "oracle"]
    assert [curve["title"] for curve in said["curves"]] == titles
    for title in titles:
        assert f"\n{title}" in table and f"| {title} |" in report and f"- *{title}*: " in report
    assert [one["budget"] for one in said["operating"]] == [None, 0.3, 0.6]
    static = said["curves"][titles.index("static network")]
    assert [point["label"] for point in static["points"]] == ["budget 0.25", "budget 0.5"]
    assert "train it with train.py --agent static" in table and said["verdict"]["use"] == "static"
    assert any("gumbel-0.5" in note and "left out" in note for note in said["notes"])
    pictures = {f"figures/{name}.png" for name in ("curve", "run_rate", "flow", "examples")}
    assert all(f"({picture})" in report and (run / picture).is_file() for picture in pictures)
    assert not (run / "compare").exists(), "TensorBoard is for train.py"
    assert f"more in {run / 'compare.md'}" in table
    assert "verdict:" in table and "## Verdict" in report
    assert [one["batch_size"] for one in said["times"]] == [1, 8, 64]


def test_a_run_without_readouts_has_no_baselines_that_leave_by_them(jumping_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(jumping_run.folder), "--rows", "40", "--json"]) == 0
    titles = [curve["title"] for curve in json.loads(capsys.readouterr().out)["curves"]]
    assert titles == ["policy", "full depth", "best fixed route", "random routes", "shuffled-routes control", "oracle"]


def test_json_is_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), "--json", "--budgets", "0.5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and json.loads(captured.out) == json.loads((run / "compare.json").read_text())


def test_baselines_are_set_beside_on_the_rows_that_were_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_baseline(run / "baselines" / "static", "static", 0.5, right=0.5)
    assert main(["compare", str(run), "--rows", "100", "--budgets", "0.6", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    drawn = Rows.load(load_task("digits"), "cpu", 100).indices[1]
    static = next(one for one in said["operating"][1]["baselines"] if one["name"] == "static")
    assert said["rows"] == 100
    assert static["accuracy"]["value"] == pytest.approx(float((drawn < 180).float().mean()))


def test_prune_takes_the_route_that_compare_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), "--budgets", "0.5"]) == 0
    fixed = next(one for one in json.loads((run / "compare.json").read_text())["operating"][0]["baselines"] if one["name"] == "fixed")
    capsys.readouterr()
    assert main(["prune", str(run), str(tmp_path / "pruned"), "--json"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert pruned["layers"] == fixed["layers"]
    assert (pruned["accuracy"], pruned["compute"]) == pytest.approx((fixed["accuracy"]["value"], fixed["compute"]))


def test_train_py_compares_alike_trains_first_and_shows_it_in_tensorboard(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: Path, budgets: tuple[float, ...], data: str | None, allow_code: bool) -> None:
        for budget in budgets:
            save_baseline(folder / "baselines" / f"shallow-{budget}", "shallow", budget)

    monkeypatch.setattr(agents.baselines.compare, "train_baselines", trained)
    assert train.main(["compare", str(run), "--budgets", "0.4", "0.7", "--device", "cpu", "--json"]) == 0
    assert "shallow" not in [curve["name"] for curve in json.loads(capsys.readouterr().out)["curves"]]
    assert train.main(["compare", str(run), "--train-baselines", "--budgets", "0.4", "0.7", "--device", "cpu"]) == 0
    said = json.loads((run / "compare.json").read_text())
    shallow = next(curve for curve in said["curves"] if curve["name"] == "shallow")
    assert shallow["points"][0]["label"] == "budget 0.4"
    assert {folder.name for folder in (run / "compare").iterdir()} == {curve["title"] for curve in said["curves"]}, "a curve for each"
    assert "verdict:" in capsys.readouterr().out
    assert train.main(["compare", "nowhere", "--train-baselines"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "there is no folder nowhere" in captured.err


def test_the_package_alone_trains_nothing_and_says_who_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"python train.py compare {run} --train-baselines" in complaint(capsys, run, "--train-baselines")
    assert not (run / "baselines").exists()


def test_without_matplotlib_there_are_no_figures(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["compare", str(run), "--budgets", "0.5"]) == 0
    assert not (run / "figures").exists() and "![" not in (run / "compare.md").read_text()


def test_what_was_to_be_trained_and_is_not_there_is_noted_with_its_reason(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_baseline(run / "baselines" / "static-0.5", "static", 0.5)
    plan = {"static-0.5": Planned("static network"), "exits": Planned("exits network", "no head to copy"), "gumbel": Planned("gates")}
    write_plan(run, plan)
    assert main(["compare", str(run), "--budgets", "0.5", "--json"]) == 0
    folder = run / "baselines"
    assert json.loads(capsys.readouterr().out)["notes"] == [
        f"{folder / 'exits'}, exits network, is not there: no head to copy",
        f"{folder / 'gumbel'}, gates, is not there: its training has not begun",
    ]


OWN = '''
import torch

from rl_skip import BaselineRecord, Bench, MeasuredBaseline


def first(bench: Bench) -> dict:
    L = bench.stack.depth
    return {f"first {k}": torch.arange(L) < k for k in (1, L)}


first_layers = MeasuredBaseline(BaselineRecord("first", "first layers", about="no others", advice="use them", colour="#123456"), first)
number = 3
'''


def test_a_baseline_of_ones_own_is_named_by_its_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    own = f"{tmp_path / 'mine.py'}:"
    assert main(["compare", str(run), "--budgets", "0.5", "--baseline", own + "first_layers", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    mine, full = (next(curve for curve in said["curves"] if curve["name"] == name) for name in ("first", "full-depth"))
    assert mine["title"] == "first layers" and mine["points"][-1]["compute"] <= 1
    assert "| first layers |" in (run / "compare.md").read_text() and "- *first layers*: no others." in (run / "compare.md").read_text()
    if mine["points"][-1]["label"].startswith("first 4"):
        assert mine["points"][-1]["accuracy"] == full["points"][0]["accuracy"]
    assert "is a int, not a rl_skip.MeasuredBaseline" in complaint(capsys, run, "--baseline", own + "number")
    assert "has no baseline 'nothing'" in complaint(capsys, run, "--baseline", own + "nothing")
    assert "there is no baseline 'static'" in complaint(capsys, run, "--baseline", "static")


def test_two_seeds_share_one_report_and_baselines_go_to_their_seed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    described = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(described | {"seed": 7}))
    (second / SEAL).unlink()  # a run that was not finished has none, and is compared all the same
    for seed in (0, 7):
        save_baseline(tmp_path / f"exits-{seed}", "exits", 0.2, seed=seed)
        (tmp_path / f"exits-{seed}" / "config.json").write_text(json.dumps(described | {"seed": seed}))
    words = [str(run), str(second), "--baselines", str(tmp_path / "exits-7"), str(tmp_path / "exits-0"), "--budgets", "0.5", "--json"]
    assert main(["compare", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seeds"] == [0, 7] and "exits network" in [curve["title"] for curve in said["curves"]]
    assert "differ in their seed" in complaint(capsys, run, run)
    (tmp_path / "exits-0" / "config.json").write_text(json.dumps(described | {"seed": 3}))
    assert "has seed 3" in complaint(capsys, *words[:-1])


def test_what_does_not_go_together_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no folder" in complaint(capsys, tmp_path / "nowhere")
    assert "is not a run" in complaint(capsys, tmp_path)
    save_baseline(tmp_path / "short", "shallow", 0.5, missing=3)
    assert "357 test rows, the run has 360" in complaint(capsys, run, "--baselines", tmp_path / "short")
    other = json.loads((run / "config.json").read_text()) | {"task": {"name": "speech", "data": None}}
    (tmp_path / "short" / "config.json").write_text(json.dumps(other))
    assert "was trained on speech, the run on digits" in complaint(capsys, run, "--baselines", tmp_path / "short")
    assert "a budget is a mean compute in (0, 1]" in complaint(capsys, run, "--budgets", "1.5")
    assert not (run / "compare.json").exists()
