"""A training process killed with SIGKILL at random moments and resumed each time, against one that was never stopped.

Every other kill waits until a file is half written: a checkpoint, a report, the export. Of several processes that train together one is killed,
drawn at random, and the others must end by themselves. Both runs must end with the same weights, bit for bit, the same metrics, and event files
that show each step once.

    python benchmarks/kill.py
    python benchmarks/kill.py --kills 50 --seed 1 --epochs 20 --agent reinforce
    python benchmarks/kill.py --processes 2
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # noqa: E402

from rl_skip.core.files import UNFINISHED  # noqa: E402

WEIGHTS = ("policy.safetensors", "model.safetensors")
SMALL = ("--layers", "4", "--width", "16", "--warmup-epochs", "2", "--eval-epochs", "2", "--threads", "1", "--checkpoint-updates", "5")
PATIENCE = 300.0


def start(*arguments: str, count: int = 1) -> subprocess.Popen[str]:
    """train.py in a process of its own, or the launcher of several."""
    launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [sys.executable, *launcher, str(TOP / "train.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill(process: subprocess.Popen[str], count: int, chance: random.Random) -> bool:
    """Kills the process, or one of those that it launched, and waits until all have ended. Returns whether one was left to be killed."""
    launched = [str(process.pid)] if count == 1 else Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if launched:
        os.kill(int(chance.choice(launched)), signal.SIGKILL)
    output, _ = process.communicate(timeout=PATIENCE)
    if not launched and process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{output}")
    return bool(launched)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for its end, which must be a good one."""
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{output}")


def reached(folder: Path) -> int:
    """The update of the newest checkpoint; -1 while there is no run folder."""
    updates = [int(file.name.split("-")[1]) for file in folder.glob("checkpoints/update-*.pt")]
    return max(updates, default=0 if (folder / "config.json").is_file() else -1)


class Kill(NamedTuple):
    """What a kill left."""

    update: int
    """Of the newest checkpoint."""
    writing: str
    """A file that it left half written, by the process that wrote it; "" for none."""


def half_written(folder: Path) -> str:
    """What is being written in a run folder."""
    for place in (folder, folder / "checkpoints"):
        try:
            names = [entry.name for entry in os.scandir(place)]
        except OSError:  # not there yet
            continue
        found = next((name for name in names if UNFINISHED.fullmatch(name)), None)
        if found is not None:
            return found
    return ""


def wait_for_writing(process: subprocess.Popen[str], folder: Path, deadline: float, *, halted: bool) -> None:
    """Waits until a file is half written; the process is then halted, so that it stays so, or has ended."""
    while process.poll() is None and time.monotonic() < deadline:
        if not half_written(folder):
            continue
        if not halted:
            return
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if half_written(folder):
            return
        process.send_signal(signal.SIGCONT)  # the file was whole before it stopped


def train_with_kills(folder: Path, options: tuple[str, ...], moments: list[int], chance: random.Random, count: int = 1) -> list[Kill]:
    """Trains into `folder` in so many processes, killed after the checkpoint of each of the `moments`, ascending updates.

    A kill comes soon after it, or when next a file is written.

    Returns:
        What each kill left; those that came after the end of the run are left out.
    """
    left: list[Kill] = []
    for number, moment in enumerate(moments):
        process = start("--resume", str(folder), count=count) if folder.exists() else start("--out", str(folder), *options, count=count)
        deadline = time.monotonic() + PATIENCE
        while reached(folder) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if number % 2:
            wait_for_writing(process, folder, deadline, halted=count == 1)
        else:
            time.sleep(chance.uniform(0, 0.3))
        if process.poll() is None:
            if kill(process, count, chance):
                left.append(Kill(reached(folder), half_written(folder)))
        elif process.returncode:
            raise RuntimeError(f"train.py ended with {process.returncode}:\n{process.communicate()[0]}")
    finish(start("--resume", str(folder), count=count))
    return left


def points(folder: Path) -> Counter[tuple[str, int]]:
    """How often each tag stands at each step in the event files as they lie there, without any reader's purging."""
    events = [event for file in folder.glob("events.out.tfevents.*") for event in LegacyEventFileLoader(str(file)).Load()]
    return Counter((value.tag, event.step) for event in events for value in event.summary.value)


def differences(unbroken: Path, killed: Path) -> list[str]:
    """What distinguishes two runs that should be one and the same."""
    different = [name for name in WEIGHTS if (unbroken / "policy" / name).read_bytes() != (killed / "policy" / name).read_bytes()]
    if metrics(unbroken) != metrics(killed):
        different.append("metrics.jsonl")
    if _untimed(points(unbroken)) != _untimed(points(killed)):
        different.append("the event files' steps")
    return different


def _untimed(counted: Counter[tuple[str, int]]) -> Counter[tuple[str, int]]:
    """Without the speed, which a sitting that begins with a report has not measured."""
    return Counter({point: count for point, count in counted.items() if not point[0].startswith("time/")})


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without the times."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in entries]


def main() -> int:
    """Prints where the kills fell and whether the two runs agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data")
    parser.add_argument("--agent", default="reinforce", help="the agent to train with")
    parser.add_argument("--processes", type=int, default=1, help="that train together")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    training = (*SMALL, "--epochs", str(options.epochs), "--agent", options.agent)
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = Path(folder) / "unbroken", Path(folder) / "killed"
        finish(start("--out", str(unbroken), *training, count=options.processes))
        updates = reached(unbroken)
        moments = sorted(chance.randrange(updates + 1) for _ in range(options.kills))  # the last is that of the run's end
        left = train_with_kills(killed, training, moments, chance, options.processes)
        different = differences(unbroken, killed)
    writing = sum(bool(kill.writing) for kill in left)
    at = ", ".join(f"{kill.update}{'*' * bool(kill.writing)}" for kill in left)
    print(f"{options.agent}, processes: {options.processes}, {updates} updates")
    print(f"{len(left)} kills, {writing} of them while a file was half written (*)")
    print(f"the newest checkpoint was that of update {at}")
    print("different: " + ", ".join(different) if different else "same weights, bit for bit; same metrics; each step once")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
