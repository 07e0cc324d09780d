"""What the benchmarks share: a run that is trained where it is not there yet."""

import subprocess
import sys
from pathlib import Path

from agents.agent import has_report

TRAIN = Path(__file__).parent.parent / "train.py"


def trained(run: Path, *flags: str) -> Path:
    """The run folder, trained if it is not finished."""
    if not has_report(run):
        subprocess.run([sys.executable, str(TRAIN), *flags, "--out", str(run), "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    return run
