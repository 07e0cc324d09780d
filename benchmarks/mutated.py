"""Mutated files, each loaded as a person would: how many are refused in one line, and whether any that is changed is taken for the old one.

Every kind of file that is read is tried: exports, run folders, checkpoints, curves, event files, and the data of each task. What a digest covers is
tried once as it is mutated, and once with a new digest, so that the readers behind it are tried too.

    python benchmarks/mutated.py --count 10000
    python benchmarks/mutated.py --count 500 --only checkpoint --seed 1

Outcomes: `refused` in one line; `same`, accepted and it reads as the old one; `other`, accepted as another file, which no checksum told
apart or whose checksum was made to fit. Faults: `changed`, accepted though a digest or checksum does not fit; `traceback`, any other error;
`hang`, more than 5 seconds; `memory`, more than 1 GiB. The exit code is 1 if there is any.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rl_skip
import train
from agents.agent import has_report
from agents.options.config import CheckpointConfig, TrainConfig
from agents.run.checkpoints import Checkpoints
from agents.run.session import Session
from agents.run.start import START, load_start
from agents.run.telemetry import Telemetry
from benchmarks.mutations import Mutate, any_bytes, in_arrays, in_gzip, in_json, in_picture, in_state, in_table, in_tensors, in_wave
from rl_skip.core.errors import UserError
from rl_skip.core.seal import SEAL, seal
from rl_skip.export.pruned import load_pruned
from rl_skip.measure.compare.curves import load_curve
from rl_skip.measure.prune import prune
from rl_skip.measure.runs import read_run
from rl_skip.tasks import load_task
from rl_skip.tasks.data_report import read_data_report

SECONDS, BYTES = 5.0, 2**30
"""That one file may take."""
SMALL = (
    "--layers", "4", "--width", "8", "--heads", "2", "--train-rows", "128", "--warmup-epochs", "1", "--epochs", "2", "--threads", "1",
    "--checkpoint-updates", "3", "--keep-checkpoints", "1", "--device", "cpu",
)  # fmt: skip
TAKES_OUT = 3
"""Of the small run's checkpoints, how many updates before its end the one lies that is mutated."""


class Target(NamedTuple):
    """A file, in its folder, and how it is read."""

    name: str
    folder: Path
    file: str
    read: Callable[[Path], object]
    """Given a copy of the folder; returns what was read of it."""
    mutate: tuple[Mutate, ...]
    digest: Callable[[Path], None] | None = None
    """Makes the digest right again after the file in a copy of the folder was changed; None: there is none."""
    checksum: bool = False
    """Whether the file itself carries one over all that matters."""


class Hang(BaseException):
    """It took too long."""


def digest_of(value: object) -> str:
    """A digest of all that was read, whatever it is."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        found.update(type(value).__name__.encode())
        if isinstance(value, Tensor):
            found.update(repr((value.dtype, tuple(value.shape))).encode() + value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, nn.Module):
            add(value.state_dict())
        elif isinstance(value, Mapping):
            add([(key, value[key]) for key in sorted(value, key=repr)])
        elif isinstance(value, list | tuple):
            for inner in value:
                add(inner)
        elif is_dataclass(value):
            add([getattr(value, field.name) for field in fields(value)])
        else:
            found.update(repr(value).encode("utf-8", "backslashreplace"))

    add(value)
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------------------- what is read


def _model(folder: Path) -> object:
    model = rl_skip.load(folder)
    return model, model.policy.rules, model.price, model.table, model(load_task("digits").load("test").inputs[:4])


def _pruned(folder: Path) -> object:
    return load_pruned(folder)(load_task("digits").load("test").inputs[:4])


def _run(folder: Path) -> object:
    config = TrainConfig.from_json(folder, allow_code=False)
    return read_run(folder).network, read_run(folder).options, has_report(folder), [*read_data_report(folder)], config.to_json()


def _curves(folder: Path) -> object:
    with closing(Telemetry(folder, lambda said: None, resume_after=10)):
        return (folder / "metrics.jsonl").read_text().splitlines()


def _data(task: str, name: str = "") -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        load_task.cache_clear()
        loaded = load_task(task, str(folder / name))
        return [loaded.load(split) for split in ("train", "validation", "test")]

    return read


class Resuming:
    """Goes on from the newest checkpoint, with one session for all files: what it holds from before is overwritten."""

    def __init__(self, run: Path) -> None:
        self.session = Session(TrainConfig.from_json(run, allow_code=False), load_task("digits"), torch.device("cpu"))

    def __call__(self, folder: Path) -> object:
        said: list[str] = []
        state = Checkpoints(folder, CheckpointConfig()).latest(said.append)
        if state is None:
            raise UserError(" ".join(said))
        self.session.load_state_dict(state)
        if self.session.done < self.session.learner.updates:
            self.session.update(self.session.done)
        return self.session.state_dict()

    def start(self, folder: Path) -> object:
        """The same of the state after the warm-up."""
        load_start(self.session.learner, folder / START)
        return self.session.learner.state_dict()


def _renamed(folder: Path) -> None:
    """Gives a checkpoint the digest in its name that fits it."""
    (file,) = folder.glob("checkpoints/update-*.pt")
    file.rename(file.with_name(f"{file.name[:17]}{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.pt"))


# --------------------------------------------------------------------------------------------------------- what is mutated


def targets(place: Path) -> Iterator[Target]:
    """All of them, in folders of their own below `place`."""
    run, other, cut = place / "run", place / "other", place / "cut"
    assert train.main([*SMALL, "--out", str(run)]) == 0
    assert train.main([*SMALL, "--out", str(other), "--agent", "exits"]) == 0
    prune(run, cut, layers=(0, 2))
    export, text, weights = run / "policy", (any_bytes, in_json), (any_bytes, in_tensors)
    yield Target("policy.json", export, "policy.json", _model, text, seal)
    yield from (Target(name, export, name, _model, weights, seal) for name in ("policy.safetensors", "model.safetensors", "readouts.safetensors"))
    yield Target("SHA256SUMS", export, SEAL, _model, (any_bytes,), checksum=True)
    yield Target("pruned.json", cut, "pruned.json", _pruned, text, seal)
    yield Target("pruned.safetensors", cut, "pruned.safetensors", _pruned, weights, seal)
    for name in ("config.json", "data.json", "report.json"):
        yield Target(name, run, name, _run, text, _sealed)
    for name, how in (("curve.json", text), ("curve.safetensors", weights)):
        yield Target(name, other, name, load_curve, how, _sealed)
    resuming, stopped = Resuming(run), _stopped(place)
    checkpoint = next(stopped.glob("checkpoints/*.pt"))
    yield Target("checkpoint", stopped, f"checkpoints/{checkpoint.name}", resuming, (any_bytes, in_state), _renamed)
    yield Target("start.safetensors", run, START, resuming.start, weights, _sealed)
    yield Target("metrics.jsonl", stopped, "metrics.jsonl", _curves, text)
    (events,) = (file.name for file in stopped.glob("events.out.tfevents.*"))
    yield Target("event file", stopped, events, _curves, (any_bytes,))
    yield from _data_targets(place / "data")


def _sealed(folder: Path) -> None:
    """As a finished run is."""
    seal(folder, [line[66:] for line in (folder / SEAL).read_text().splitlines()])


def _stopped(place: Path) -> Path:
    """A run that was stopped in its middle, with one checkpoint."""
    folder = place / "stopped"
    write = Checkpoints.write

    def stop(self: Checkpoints, done: int, state: dict[str, Any]) -> None:
        write(self, done, state)
        raise UserError("enough")

    Checkpoints.write = stop  # type: ignore[method-assign]
    train.main([*SMALL, "--out", str(folder)])
    Checkpoints.write = write  # type: ignore[method-assign]
    return folder


def _data_targets(place: Path) -> Iterator[Target]:
    """Small data of each kind."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (24, 8, 8), dtype=np.uint8), np.arange(24, dtype=np.uint8) % 3
    arrays, idx, words, pictures, tables, texts = (place / name for name in ("arrays", "idx", "words", "pictures", "tables", "texts"))
    for folder in (arrays, idx, words / "yes", words / "no", pictures / "cat", pictures / "dog", tables, texts):
        folder.mkdir(parents=True)
    np.savez_compressed(arrays / "data.npz", images=pixels, labels=labels)
    yield Target("npz", arrays, "data.npz", _data("images", "data.npz"), (any_bytes, in_arrays), checksum=True)
    for kind in ("train", "t10k"):
        (idx / f"{kind}-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, *pixels.shape) + pixels.tobytes())
        (idx / f"{kind}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes(), mtime=0))
    yield Target("IDX", idx, "train-images-idx3-ubyte", _data("images"), (any_bytes,))
    yield Target("IDX, packed", idx, "t10k-labels-idx1-ubyte.gz", _data("images"), (any_bytes, in_gzip), checksum=True)
    for number in range(6):
        for name in ("yes", "no"):
            samples = (8000 * draw.standard_normal(600)).astype("<i2").tobytes()
            header = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", len(samples))
            (words / name / f"{number}.wav").write_bytes(b"RIFF" + struct.pack("<I", len(header) + len(samples)) + header + samples)
            shown = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            shown.save(pictures / ("cat" if name == "yes" else "dog") / f"{number}.png")
    yield Target("WAV", words, "yes/1.wav", _data("speech"), (any_bytes, in_wave))
    yield Target("PNG", pictures, "cat/1.png", _data("images"), (any_bytes, in_picture), checksum=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(words, ".")
    (place / "tar").mkdir()
    (place / "tar" / "words.tar.gz").write_bytes(gzip.compress(archive.getvalue(), mtime=0))
    yield Target("tar.gz", place / "tar", "words.tar.gz", _data("speech", "words.tar.gz"), (any_bytes, in_gzip), checksum=True)
    rows = [f"{'good' if number % 2 else 'dull'} number {number}\t{number % 2}" for number in range(24)]
    (tables / "data.tsv").write_text("\n".join(["text\tlabel", *rows, ""]))
    yield Target("TSV", tables, "data.tsv", _data("text", "data.tsv"), (any_bytes, in_table))
    (texts / "data.txt").write_text("What comes next, and what comes after that? " * 150)
    yield Target("text", texts, "data.txt", _data("language", "data.txt"), (any_bytes,))


# ----------------------------------------------------------------------------------------------------------------- trying


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raises `Hang` in what takes longer."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The largest memory so far, in bytes; on Linux since the last `forget_peak`."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])


def forget_peak() -> int:
    """Lets `peak` begin anew; returns where it stands."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def outcome(target: Target, folder: Path, guarded: bool, whole: str) -> tuple[str, str]:
    """Reads a mutated copy of the target's folder: what became of it, and what was said."""
    before = forget_peak()
    try:
        with no_longer_than(SECONDS):
            found = digest_of(target.read(folder))
    except UserError as refusal:
        kind, said = ("refused" if "\n" not in str(refusal) else "traceback"), str(refusal)
    except Hang:
        kind, said = "hang", ""
    except MemoryError:
        kind, said = "memory", traceback.format_exc().strip()
    except BaseException:
        kind, said = "traceback", traceback.format_exc().strip()
    else:
        kind, said = "same" if found == whole else "changed" if guarded else "other", ""
    return ("memory" if peak() - before > BYTES else kind), said


def attempt(target: Target, number: int, seed: int, place: Path, whole: str) -> tuple[str, str, str]:
    """One mutation: what was done, what became of it, and what was said."""
    chance = random.Random(f"{seed} {target.name} {number}")
    mutation = chance.choice(target.mutate)((target.folder / target.file).read_bytes(), chance)
    copy = place / f"{number}"
    shutil.copytree(target.folder, copy)
    (copy / target.file).write_bytes(mutation.content)
    fitting = target.digest is not None and chance.random() < 0.6
    if fitting and target.digest is not None:
        target.digest(copy)
    guarded = not fitting if target.digest is not None else target.checksum and not mutation.checked
    kind, said = outcome(target, copy, guarded, whole)
    shutil.rmtree(copy)
    return f"{mutation.name}{', with a digest that fits' if fitting else ''}", kind, said


FAULTS = ("changed", "traceback", "hang", "memory")
OUTCOMES = ("refused", "same", "other", *FAULTS)


def main() -> int:
    """Prints each fault, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="how many files, the same number of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--only", help="the kinds whose name holds this")
    parser.add_argument("--json", type=Path, help="a file for the counts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = {}
    begun, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        place, quiet = Path(folder), io.StringIO()
        sys.stdout, shown = quiet, sys.stdout
        chosen = [target for target in targets(place) if options.only is None or options.only in target.name]
        sys.stdout = shown
        for target in chosen:
            counts[target.name] = Counter()
            shutil.copytree(target.folder, place / "whole")
            whole = digest_of(target.read(place / "whole"))
            shutil.rmtree(place / "whole")
            for number in range(-(-options.count // len(chosen))):
                started = time.monotonic()
                done, kind, said = attempt(target, number, options.seed, place, whole)
                slowest = max(slowest, time.monotonic() - started)
                counts[target.name][kind] += 1
                if kind in FAULTS:
                    print(f"{kind:9} {target.name} {number}: {done}: {said.splitlines()[-1][:200] if said else ''}", flush=True)
                    for line in said.splitlines()[-7:-1] if os.environ.get("TRACE") else ():
                        print(f"          {line}")
    total = sum(counts.values(), Counter())
    print(f"{'':20}" + "".join(f"{kind:>10}" for kind in OUTCOMES))
    for name, found in (*counts.items(), ("all", total)):
        print(f"{name:20}" + "".join(f"{found[kind]:10}" for kind in OUTCOMES))
    print(f"{sum(total.values()):,} files in {time.monotonic() - begun:.0f} s, {slowest:.1f} s at most for one")
    if options.json is not None:
        options.json.write_text(json.dumps({name: dict(found) for name, found in counts.items()}, indent=2) + "\n")
    return int(any(total[kind] for kind in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
