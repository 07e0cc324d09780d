"""The command on a real run: what it writes and prints, which baselines it reads, and what it refuses."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rl_skip.cli import main
from rl_skip.compare import command
from rl_skip.compare.curves import Curve, Point, save_curve
from rl_skip.compare.measure import Rows
from rl_skip.tasks import load_task

ROWS = {"validation": 359, "test": 360}


@pytest.fixture
def run(finished_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


def save_baseline(folder: Path, kind: str, compute: float, right: float = 1.0, seed: int = 0, missing: int = 0) -> None:
    """A baseline that is right on a share of the rows, the first ones."""
    points = []
    for rows in (ROWS["validation"], ROWS["test"] - missing):
        correct = (torch.arange(rows) < right * rows).float()
        points.append((Point(f"budget {compute}", None, compute, correct, torch.full((rows,), compute)),))
    save_curve(folder, Curve(f"{kind} network", kind, seed, *points))


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_it_writes_and_prints_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_baseline(run / "baselines" / "static-0.5", "static", 0.5)
    save_baseline(run / "baselines" / "static-0.25", "static", 0.25, right=0.1)
    (run / "baselines" / "gumbel-0.5").mkdir()
    assert main(["compare", str(run), "--budgets", "0.3", "0.6", "--device", "cpu"]) == 0
    table, said = capsys.readouterr().out, json.loads((run / "compare.json").read_text())
    report = (run / "compare.md").read_text()
    names = ["policy", "full depth", "best fixed route", "static network", "random routes", "another row's eyes", "oracle"]
    assert [curve["name"] for curve in said["curves"]] == names
    for name in names:
        assert f"\n{name}" in table and f"| {name} |" in report
    assert [one["budget"] for one in said["operating"]] == [None, 0.3, 0.6]
    assert [point["label"] for point in said["curves"][3]["points"]] == ["budget 0.25", "budget 0.5"]
    assert "train it with train.py --agent static" in table and said["verdict"]["use"] == "static network"
    assert any("gumbel-0.5" in note and "left out" in note for note in said["notes"])
    pictures = {f"figures/{name}.png" for name in ("curve", "run_rate", "flow", "examples")}
    assert all(f"({picture})" in report and (run / picture).is_file() for picture in pictures)
    assert {folder.name for folder in (run / "compare").iterdir()} == set(names), "TensorBoard has a curve for each"
    assert f"more in {run / 'compare.md'}" in table
    assert "verdict:" in table and "## Verdict" in report
    assert [one["batch_size"] for one in said["times"]] == [1, 8, 64]


def test_json_is_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), "--json", "--budgets", "0.5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and json.loads(captured.out) == json.loads((run / "compare.json").read_text())


def test_baselines_are_set_beside_on_the_rows_that_were_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_baseline(run / "baselines" / "static", "static", 0.5, right=0.5)
    assert main(["compare", str(run), "--rows", "100", "--budgets", "0.6", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    drawn = Rows.load(load_task("digits"), "cpu", 100).places[1]
    static = next(one for one in said["operating"][1]["baselines"] if one["kind"] == "static")
    assert said["rows"] == 100
    assert static["accuracy"]["value"] == pytest.approx(float((drawn < 180).float().mean()))


def test_prune_takes_the_route_that_compare_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), "--budgets", "0.5"]) == 0
    fixed = next(one for one in json.loads((run / "compare.json").read_text())["operating"][0]["baselines"] if one["name"] == "best fixed route")
    capsys.readouterr()
    assert main(["prune", str(run), str(tmp_path / "pruned"), "--json"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert pruned["layers"] == fixed["layers"]
    assert (pruned["accuracy"], pruned["compute"]) == pytest.approx((fixed["accuracy"]["value"], fixed["compute"]))


def test_baselines_are_trained_first_where_there_is_what_trains_them(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, budgets: tuple[float, ...], data: str | None) -> None:
        for budget in budgets:
            save_baseline(folder / "baselines" / f"shallow-{budget}", "shallow", budget)

    monkeypatch.setattr(command, "find_spec", lambda name: object() if name in ("agents", "agents.baselines") else None)
    monkeypatch.setattr(command, "import_module", lambda name: SimpleNamespace(train_baselines=train))
    assert main(["compare", str(run), "--train-baselines", "--budgets", "0.4", "0.7"]) == 0
    trained = json.loads((run / "compare.json").read_text())["curves"][3]
    assert trained["kind"] == "shallow" and trained["points"][0]["label"] == "budget 0.4"
    assert not (run / "figures").exists(), "without matplotlib there are no figures"
    capsys.readouterr()
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "from the checkout" in complaint(capsys, run, "--train-baselines")


def test_two_seeds_share_one_report_and_baselines_go_to_their_seed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    described = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(described | {"seed": 7}))
    for seed in (0, 7):
        save_baseline(tmp_path / f"exits-{seed}", "exits", 0.2, seed=seed)
        (tmp_path / f"exits-{seed}" / "config.json").write_text(json.dumps(described | {"seed": seed}))
    words = [str(run), str(second), "--baselines", str(tmp_path / "exits-7"), str(tmp_path / "exits-0"), "--budgets", "0.5", "--json"]
    assert main(["compare", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seeds"] == [0, 7] and "exits network" in [curve["name"] for curve in said["curves"]]
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
