"""The scripts in `examples/` run as they stand there."""

import json
import runpy
from pathlib import Path

import pytest
import torch

import rl_skip

FOLDER = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(file for file in FOLDER.glob("*.py") if not file.name.startswith("own_"))
"""Those that train; what is named on the command line, own_*.py, is tried where the tests of its kind are."""


@pytest.mark.parametrize("script", EXAMPLES, ids=[script.stem for script in EXAMPLES])
def test_an_example(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    names = runpy.run_path(str(script), run_name="__main__")

    report = json.loads((tmp_path / names["run"] / "report.json").read_text())
    assert report["policy"]["accuracy"] > 0.8 and report["full depth"]["accuracy"] > 0.8
    assert 1 / names["stack"].depth < report["policy"]["compute"] < 0.9
    model = names["model"]
    assert model.last.compute.mean() <= 0.62
    assert (names["logits"].argmax(dim=1) == names["task"].load("test").labels).float().mean() > 0.8
    assert "rl_skip.load(" in capsys.readouterr().out
    again = rl_skip.load(tmp_path / names["run"] / "policy", names["stack"], budget=0.6)
    torch.testing.assert_close(again(names["task"].load("test").inputs), names["logits"])


def test_there_is_an_example_for_each_kind_of_stack() -> None:
    assert [script.stem for script in EXAMPLES] == ["mlp_mixer", "resnet_stage", "transformer_encoder"]
