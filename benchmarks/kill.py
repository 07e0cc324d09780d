"""A training process killed with SIGKILL at random moments and resumed each time, against one that was never stopped.

Both must end with the same weights, bit for bit, the same metrics, and event files that show each step once.

    python benchmarks/kill.py
    python benchmarks/kill.py --kills 10 --seed 1 --epochs 20 --agent reinforce
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # noqa: E402

WEIGHTS = ("policy.safetensors", "model.safetensors")
SMALL = ("--layers", "4", "--width", "16", "--warmup-epochs", "2", "--eval-epochs", "2", "--threads", "1", "--checkpoint-updates", "5")
PATIENCE = 300.0


def start(*arguments: str) -> subprocess.Popen[str]:
    """train.py in a process of its own."""
    return subprocess.Popen([sys.executable, str(TOP / "train.py"), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for its end, which must be a good one."""
    output, _ = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}:\n{output}")


def reached(folder: Path) -> int:
    """The update of the newest checkpoint; -1 while there is no run folder."""
    updates = [int(file.name.split("-")[1]) for file in folder.glob("checkpoints/update-*.pt")]
    return max(updates, default=0 if (folder / "config.json").is_file() else -1)


def train_with_kills(folder: Path, options: tuple[str, ...], moments: list[int], chance: random.Random) -> list[int]:
    """Trains into `folder`, killed shortly after the checkpoint of each of the `moments`, ascending updates.

    Returns:
        For each kill the update of the newest checkpoint that it left.
    """
    left: list[int] = []
    for moment in moments:
        process = start("--resume", str(folder)) if folder.exists() else start("--out", str(folder), *options)
        deadline = time.monotonic() + PATIENCE
        while reached(folder) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended before it could be killed at update {moment}:\n{process.communicate()[0]}")
        process.kill()
        process.communicate()
        left.append(reached(folder))
    finish(start("--resume", str(folder)))
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
    if points(unbroken) != points(killed):
        different.append("the event files' steps")
    return different


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
    options = parser.parse_args()
    chance = random.Random(options.seed)
    training = (*SMALL, "--epochs", str(options.epochs), "--agent", options.agent)
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = Path(folder) / "unbroken", Path(folder) / "killed"
        finish(start("--out", str(unbroken), *training))
        updates = reached(unbroken)
        moments = sorted(chance.randrange(updates) for _ in range(options.kills))
        left = train_with_kills(killed, training, moments, chance)
        different = differences(unbroken, killed)
    print(f"{options.agent}, {updates} updates, killed after {', '.join(str(update) for update in left)}")
    print("different: " + ", ".join(different) if different else "same weights, bit for bit; same metrics; each step once")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
