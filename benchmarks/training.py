"""What the benchmarks share: a run that is trained where it is not there yet."""

import subprocess
import sys
from pathlib import Path

from agents.agent import has_report

TRAIN = Path(__file__).parent.parent / "train.py"


def trained(run: Path, *flags: str) -> Path:
    """The run folder, trained if it is not finished; one that was begun goes on."""
    if not has_report(run):
        place = "--resume" if (run / "config.json").is_file() else "--out"
        subprocess.run([sys.executable, str(TRAIN), *flags, place, str(run)], check=True, stdout=subprocess.DEVNULL)
    return run
