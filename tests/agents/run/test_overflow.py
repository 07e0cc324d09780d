"""Training that leads to numbers that are not finite stops before they are learned, and says where they began."""

import math
from pathlib import Path

import pytest
import torch

import train
from agents.options.config import MOST_OF
from agents.run.warmup import warm_up_for
from benchmarks.kill import SMALL
from rl_skip.core.finite import NotFinite, found_in


@pytest.mark.parametrize(
    ("options", "said", "rate"),
    [
        (["--learning-rate", "1e6"], "the gradient of network.", "--learning-rate (1e+06)"),
        (["--no-readouts", "--policy-learning-rate", "1e20"], "the output of policy.", "--policy-learning-rate (1e+20)"),
        (["--agent", "ppo", "--policy-learning-rate", "1e20"], "the output of policy.", "--policy-learning-rate (1e+20)"),
    ],
)
def test_a_run_that_diverges_ends_in_one_line_with_code_1(
    options: list[str], said: str, rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("learning_rate", "policy_learning_rate"):  # rates so high are refused before: what diverges at lower ones takes long
        monkeypatch.setitem(MOST_OF, name, math.inf)
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *SMALL, "--epochs", "2", "--checkpoint-updates", "1", "--keep-checkpoints", "2", *options]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: training stopped at update ") and said in told and rate in told
    assert not (folder / "policy").exists() and not (folder / "report.json").exists()
    for file in (folder / "checkpoints").glob("*"):
        assert f"{folder / 'checkpoints'} keeps what was before" in told
        stack = torch.load(file, weights_only=True)["learner"]["stack"]
        assert all(weight.isfinite().all() for weight in stack.values() if weight.is_floating_point())


def test_a_gradient_that_is_not_finite_is_not_applied(tiny_learner) -> None:
    learner = tiny_learner()
    warm_up_for(learner).update(0)
    before = {name: weight.clone() for name, weight in learner.stack.state_dict().items()}
    weights = list(learner.stack.named_parameters())
    for bad in (math.nan, math.inf):
        name, weight = weights[3]
        with pytest.raises(NotFinite, match=f"the gradient of network.{name} is not finite, and the loss is"):
            learner.descent.apply(weight.sum() * bad)
    assert all(torch.equal(weight, before[name]) for name, weight in learner.stack.state_dict().items())
    assert found_in(learner.stack) is None
