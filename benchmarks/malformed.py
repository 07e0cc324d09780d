"""Malformed command lines, run in one process: how many are refused in one line, accepted, or end in a traceback or a hang.

`python benchmarks/malformed.py` runs all of them and lists those that were not refused; it ends with exit code 1 if any ended in a traceback or a
hang, or was refused and wrote or changed a file. `--only WORD` runs those that hold the word.
"""

import argparse
import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import agents  # noqa: E402, F401, which registers the agents
import train  # noqa: E402
from agents.options.config import TrainConfig  # noqa: E402
from agents.run.session import Session  # noqa: E402
from rl_skip.cli.main import main as rl_skip  # noqa: E402

LIMIT = 20
"""Seconds for one; most are refused in a tenth."""
TINY = ("--layers", "4", "--width", "8", "--heads", "2", "--train-rows", "64", "--epochs", "1", "--warmup-epochs", "1", "--device", "cpu")
NUMBERS = ("-1", "0", "1e-9", "nan", "inf", "-inf", "1e400", str(2**63), str(10**30), "9" * 5000, "1_000", "0x10", "", "many", "1.5", "\udcff")
WORDS = ("", "nobody", "../..", "\udcff\udcfe", "a" * 5000, "x.py:y", ":", "no.py:", "\x00")
FREE = {"out", "overwrite", "allow_code", "device"}
"""Options that every value suits, or that decide where things are written."""
APART = (
    "--price 0.1 --price-range 0.01 1",
    "--price 0.1 --budget 0.5",
    "--budget 0.5 --price-range 0.01 1",
    "--price-range 1 0.01",
    "--price-range 0.01",
    "--budget 1e-9",
    "--budget 0",
    "--budget 1.1",
    "--price 0.1 --budget-price 0.5",
    "--price 0.1 --budget-integral 0.1",
    "--price 0.1 --budget-proportional 0.1",
    "--budget-penalty 0.1",
    "--guarantee-kind expectation",
    "--text-column a",
    "--task digits --data somewhere",
    "--task digits --pair-column b",
    "--task digits --label-column b",
    "--task digits --train-file a.csv",
    "--task digits --validation-file a.csv",
    "--task digits --test-file a.csv",
    "--task digits --label-order a,b",
    "--task digits --max-tokens 64",
    "--task hops --prompt-tokens 8",
    "--task images --max-tokens 64",
    "--task digits --head mean",
    "--task digits --model nowhere",
    "--no-readouts --readout-rank 4",
    "--no-readouts --exit-weight 0.3",
    "--max-jump 100",
    "--max-jump 0",
    "--no-jumps --max-jump 2",
    "--no-jumps --no-readouts",
    "--layers 1",
    "--layers 1000000000",
    "--width 1000000",
    "--width 65536 --layers 1000",
    "--heads 3",
    "--policy-hidden 1000000000",
    "--readout-rank 1000000000",
    "--batch-size 1000000000000",
    "--routes-per-input 1000000000",
    "--stack skip-layer --tied",
    "--body adapter",
    "--agent static",
    "--agent static --price 0.1",
    "--agent exits --budget 0.5",
    "--agent gumbel --guarantee 0.01",
    "--agent ppo --routes-per-input 4",
    "--agent reinforce --clip-range 0.1",
    "--resume nowhere",
    "--resume nowhere --overwrite",
    "--seed -1",
    "--threads 0",
    "--threads 100000",
    "--device tpu",
    "--tune some",
    "--unknown 1",
    "layers 4",
    "--layers",
    "--layers 4 --layers",
    "compare",
    "compare nowhere",
    "compare . --budgets 2",
)
COMMANDS = (
    "", "unknown", "eval", "eval nowhere", "eval .", "eval {file}", "eval {run}", "eval {run} --price", "eval {run} --split train",
    "eval {run} --price 0.1 --budget 0.5", "eval {run} --guarantee-kind confidence", "export {run}", "export {run} {file}", "export nowhere copy",
    "prune {run} {file}", "prune {run} cut --layers 0,99999999999999999999", "prune {run} cut --layers 0,,1", "prune {run} cut --layers 1,2",
    "prune {run} cut --layers 0 --budget 0.5", "info", "info nowhere", "info {file}", "info .", "generate", "generate {run} text",
    "compare {run} {run}",
    "compare {run} --rows 0", "compare {run} --baselines nowhere", "compare {run} --baseline nobody", "compare {run} --train-baselines", "eval \x00",
    "info \udcff", "eval {run} --data nowhere", "eval {run} --data \udcff", "compare {run} --device tpu", "eval {run} extra words",
)  # fmt: skip


class Outcome(NamedTuple):
    """What became of one command line."""

    kind: str
    said: str


def command_lines(run: Path, file: Path) -> Iterator[tuple[str, list[str]]]:
    """The program and the words of each."""
    for name, kind in _options(TrainConfig()):
        if name in FREE:
            continue
        flag, is_text = "--" + name.replace("_", "-"), kind in (str, "str")
        for value in WORDS if is_text else NUMBERS:
            yield "train", [*TINY, flag, value]
    yield from (("train", line.split(" ") if line.startswith("compare") else [*TINY, *line.split(" ")]) for line in APART)
    for line in COMMANDS:
        yield "rl-skip", [word.format(run=run, file=file) for word in line.split(" ") if word]
    for flag in ("--price", "--budget", "--guarantee", "--batch-size", "--threads"):
        yield from (("rl-skip", ["eval", str(run), flag, value]) for value in NUMBERS)
    for flag in ("--budgets", "--rows"):
        yield from (("rl-skip", ["compare", str(run), flag, value]) for value in NUMBERS)


def _options(config: Any) -> Iterator[tuple[str, Any]]:
    """Name and type of every option, those in groups too; yes-or-no options take no value."""
    for option in fields(config):
        value = getattr(config, option.name)
        if is_dataclass(value):
            yield from _options(value)
        elif option.type is not bool:
            texts = (str(option.type).startswith(("str", "Literal", "<class 'str'"))) or isinstance(value, str) or str in get_args(option.type)
            yield option.name, str if texts or option.name in ("feature",) else option.type


def outcome_of(call: Callable[[], int]) -> Outcome:
    """Runs a command in this process, for so many seconds at most."""
    said, shown = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    threads = torch.get_num_threads()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            code = call()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 2
        if code == 2 and "error" not in said.getvalue().lower() + shown.getvalue().lower():
            return Outcome("traceback", "exit without a word")
    except Hang:
        return Outcome("hang", "")
    except BaseException:
        return Outcome("traceback", traceback.format_exc().strip().splitlines()[-1])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)
    text = said.getvalue().strip()
    if code == 0:
        return Outcome("accepted", "")
    return Outcome("refused" if code == 2 and "Traceback" not in text else "traceback", text)


class Hang(BaseException):
    """It took too long."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise Hang


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*")) if file.is_file()}


def main() -> int:
    """Runs them, and prints what is not refused, and the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="those that hold this word")
    parser.add_argument("--train", action="store_true", help="train what is accepted, which takes long; without, that is known once training begins")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        run, file = Path(place, "run"), Path(place, "file")
        file.write_text("text\n")
        assert train.main([*TINY, "--out", str(run)]) == 0
        before = _state(Path(place))
        if not options.train:
            Session.run = lambda self, folder, console: None  # type: ignore[method-assign]
        for program, words in command_lines(run, file):
            if options.only and options.only not in words:
                continue
            out = Path(place, "out")
            whole = words if program == "rl-skip" or "compare" in words or "--resume" in words else [*words, "--out", str(out)]
            found = outcome_of(partial(rl_skip if program == "rl-skip" else train.main, whole))
            after = _state(Path(place))
            if found.kind == "refused" and after != before:
                found = Outcome("wrote", found.said)
            shutil.rmtree(out, ignore_errors=True)
            before = _state(Path(place))
            counts[found.kind] += 1
            if found.kind != "refused":
                shown = " ".join(ascii(word[:40]) for word in (words[len(TINY) :] if words[: len(TINY)] == [*TINY] else words))
                print(f"{found.kind:9} {program} {shown} {found.said[-150:]!a}", flush=True)
    print(f"{sum(counts.values())} command lines: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    return 1 if counts.keys() & {"traceback", "hang", "wrote"} else 0


if __name__ == "__main__":
    sys.exit(main())
