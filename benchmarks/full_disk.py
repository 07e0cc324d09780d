"""Trainings on disks that are too small, of many sizes, so that the room runs out everywhere: each goes on or stops with a line, and loses nothing.

Makes a tmpfs of each size, for which it must be root on Linux. Once the disk is larger the run is
resumed, and must end with the weights of one that never lacked room, bit for bit.

    python benchmarks/full_disk.py
    python benchmarks/full_disk.py --sizes 100 200 300
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from benchmarks.kill import SMALL, WEIGHTS, metrics, reached  # noqa: E402

TRAINING = (*SMALL, "--epochs", "3", "--keep-checkpoints", "2")
SIZES = (8, 32, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200, 1300, 1400, 1600, 2000)
ENOUGH = 65_536


@contextmanager
def disk(kibibytes: int) -> Iterator[Path]:
    """An empty disk of that size."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", place], check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the checkout, with all that it says."""
    command = [sys.executable, *(["-m", "rl_skip"] if program == "rl-skip" else [str(TOP / "train.py")]), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TOP, check=False)


def on_a_small_disk(kibibytes: int, unbroken: Path) -> tuple[str, list[str]]:
    """A training on it, which is resumed when there is room. Returns what happened, and what is wrong with that."""
    wrong: list[str] = []
    with disk(kibibytes) as place:
        folder = place / "run"
        first = run("train", "--out", str(folder), *TRAINING)
        told = [line for line in first.stdout.splitlines() if "No space left" in line]
        kept = reached(folder)
        if "Traceback" in first.stdout or first.returncode not in (0, 1, 2):
            wrong.append(f"exit code {first.returncode}: {first.stdout[-500:]}")
        if first.returncode and not told:
            wrong.append("nothing was said")
        subprocess.run(["mount", "-o", f"remount,size={ENOUGH}k", str(place)], check=True)
        again = ("--resume", str(folder)) if (folder / "config.json").is_file() else ("--out", str(folder), "--overwrite", *TRAINING)
        second = run("train", *again)
        if second.returncode:
            wrong.append(f"it does not go on: {second.stdout[-500:]}")
        else:
            wrong += [name for name in WEIGHTS if (folder / "policy" / name).read_bytes() != (unbroken / "policy" / name).read_bytes()]
            wrong += _metrics_lost(metrics(unbroken), metrics(folder), kept)
    said = told[-1].replace(str(place), "") if told else ""
    return f"exit code {first.returncode}, newest checkpoint {kept}, {len(told)} lines, the last: {said[:150]}", wrong


def _metrics_lost(whole: list[dict[str, float]], found: list[dict[str, float]], kept: int) -> list[str]:
    """Lines may be missing of what was done before the last checkpoint, when there was no room for them; none may differ."""
    if any(line not in whole for line in found):
        return ["metrics.jsonl differs"]
    return [f"metrics.jsonl lacks step {line['step']}" for line in whole if line not in found and line["step"] > kept]


def prune_and_export(unbroken: Path) -> list[str]:
    """What is wrong with `prune` and `export` onto a disk without room."""
    wrong: list[str] = []
    with disk(8) as place:
        for command in ("prune", "export"):
            done = run("rl-skip", command, str(unbroken), str(place / "new"))
            left = [file.name for file in place.iterdir()]
            if done.returncode != 2 or "No space left" not in done.stdout.splitlines()[-1] or "Traceback" in done.stdout or left:
                wrong.append(f"{command}: exit code {done.returncode}, {left} left: {done.stdout[-500:]}")
    return wrong


def main() -> int:
    """Prints what happened on each disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the disks, in KiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder, "unbroken")
        whole = run("train", "--out", str(unbroken), *TRAINING)
        assert whole.returncode == 0, whole.stdout
        faults = prune_and_export(unbroken)
        print("prune and export:", "; ".join(faults) or "refused in a line, nothing left behind", flush=True)
        for size in options.sizes:
            happened, wrong = on_a_small_disk(size, unbroken)
            faults += wrong
            print(f"{size:6} KiB: {happened}", *(f"  WRONG: {what}" for what in wrong), sep="\n", flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
