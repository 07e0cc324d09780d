"""What the benchmarks share: a run that is trained where it is not there yet."""

import subprocess
import sys
from pathlib import Path

TRAIN = Path(__file__).parent.parent / "train.py"


def trained(run: Path, *flags: str) -> Path:
    """The run folder, trained if it is not finished."""
    if not (run / "report.json").is_file():
        subprocess.run([sys.executable, str(TRAIN), *flags, "--out", str(run), "--overwrite"], check=True, stdout=subprocess.DEVNULL)
    return run
