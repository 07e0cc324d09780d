"""Trains every policy and every baseline of a study, three seeds of each, and prints the tables of docs/results.md.

What is trained already is not trained again, and a command that was stopped goes on, with the same flags. Flags that are not its own go to train.py.
Of policies that can but leave, benchmarks/exits.py prints the tables; the others are compared as train.py compare does.

    python benchmarks/table.py digits hops
    python benchmarks/table.py speech images --data speech=recordings.tar.gz images=fashion-mnist --each-budget speech
    python benchmarks/table.py sst2 --data sst2=sentences --model minilm --precision bf16
    python benchmarks/table.py banking77 --model minilm --computes 0.2 0.27 0.33 0.5 --baselines shallow
    python benchmarks/table.py language --data language=input.txt --seeds 0 --computes 0.51 0.68 --baselines shallow
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agents.agent import has_report
from agents.baselines.training import train_baselines
from agents.options.config import TrainConfig
from benchmarks.exits import print_tables
from rl_skip.measure.compare.command import compare_and_write
from rl_skip.measure.compare.comparison import BUDGETS
from rl_skip.measure.compare.plan import BASELINES_FOLDER
from rl_skip.measure.compare.result import BEST_FIXED, FULL_DEPTH, POLICY, BaselineResult, Comparison, Operating
from rl_skip.measure.compare.trained import EACH_BUDGET
from train import read_options

TRAIN = ROOT / "train.py"
STUDIES = {
    "digits": ["--task", "digits"],
    "speech": ["--task", "speech"],
    "images": ["--task", "images", "--train-rows", "20000", "--batch-size", "128", "--warmup-epochs", "0", "--epochs", "9"],
    "hops": ["--task", "hops"],
    "hops-joint": ["--task", "hops", "--tune", "all"],
    "sst2": ["--task", "text", "--head", "attention"],
    "sick": [
        *("--task", "text", "--head", "attention", "--text-column", "sentence_a", "--pair-column", "sentence_b"),
        *("--warmup-epochs", "4", "--epochs", "12"),
    ],
    "banking77": [
        *("--task", "text", "--head", "attention", "--data", "banking77", "--learning-rate", "1e-4"),
        *("--warmup-epochs", "3", "--epochs", "5"),
    ],
    "language": ["--task", "language", "--layers", "6", "--width", "96", "--epochs", "4"],
}
SLACK = 0.03
"""How far over a budget counts as within it."""


def train(run: Path, flags: list[str], *, allow_code: bool = False) -> None:
    """Trains a run, or goes on with it, unless it is finished; refuses one that was begun with other flags.

    Args:
        run: its folder.
        flags: of train.py.
        allow_code: whether the Python files that the run names may be run where it goes on.
    """
    fresh = [*flags, "--out", str(run), "--overwrite"]
    if (run / "config.json").is_file():
        begun = TrainConfig.from_json(run, allow_code)
        wanted = replace(read_options(fresh), out=begun.out)
        if begun.options.pretrained:  # whose size the model says
            wanted = replace(wanted, network=begun.network)
        fewer = replace(wanted.schedule, warmup_epochs=begun.schedule.warmup_epochs, epochs=begun.schedule.epochs)
        if wanted.schedule.max_updates is not None and fewer == begun.schedule:  # as many passes as suited the data
            wanted = replace(wanted, schedule=fewer)
        begun.refuse_changes(wanted)
    if has_report(run):
        return
    print(f"training {run}", file=sys.stderr, flush=True)
    resumed = ["--resume", str(run), *(["--allow-code"] if allow_code else [])] if (run / "config.json").is_file() else fresh
    subprocess.run([sys.executable, str(TRAIN), *resumed], check=True, stdout=subprocess.DEVNULL)


def trained(study: str, seed: int, out: Path, flags: list[str], budgets: Iterable[float], each_budget: bool) -> Path:
    """The run of a seed; with `each_budget` a policy for each budget is among its baselines."""
    run = out / f"{study}-{seed}"
    flags = [*STUDIES[study], "--seed", str(seed), *flags]
    train(run, flags)
    for budget in budgets if each_budget else ():
        train(run / BASELINES_FOLDER / f"budget-{budget:g}", [*flags, "--budget", str(budget)])
    return run


def best_of(point: Operating) -> list[BaselineResult]:
    """The most accurate of those that a user could run within the budget, and those that its interval does not tell from it."""
    assert point.budget is not None
    taking_part = [baseline for baseline in point.baselines if not baseline.record.control and baseline.record.name != FULL_DEPTH]
    within = [baseline for baseline in taking_part if baseline.compute <= point.budget + SLACK]
    best = max(within, key=lambda baseline: baseline.score.value, default=None)
    return [] if best is None else [baseline for baseline in within if baseline.score.value >= best.score.low]


def line(study: str, point: Operating, names: Iterable[str]) -> str:
    """One line of the table: each baseline's accuracy and compute; the best in bold, and all that its interval does not tell from it."""
    best = best_of(point)
    cells = []
    for name in names:
        baseline = point.baseline(name)
        if baseline is None:
            cells.append("")
            continue
        accuracy = f"{100 * baseline.score.value:.1f}"
        cells.append((f"**{accuracy}**" if baseline in best else accuracy) + f" @ {baseline.compute:.2f}")
    spread = 100 * point.baselines[0].score.half_width
    gap = "" if point.gap_closed is None else f"{point.gap_closed.value:.0%}"
    return f"| {study} | {point.budget:g} | " + " | ".join(cells) + f" | {spread:.1f} | {gap} |"


def columns(comparisons: dict[str, Comparison]) -> dict[str, str]:
    """Titles by name, those with a policy first."""
    known = {curve.record.name: curve.record.title for comparison in comparisons.values() for curve in comparison.curves}
    first = [POLICY, EACH_BUDGET.name, FULL_DEPTH, BEST_FIXED]
    return {name: known[name] for name in [*first, *known] if name in known}


def main() -> None:
    """Trains what is missing, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--data", nargs="+", default=[], metavar="TASK=PATH", help="where the data are, of studies that do not bring their own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/table"), help="where the run folders go")
    parser.add_argument("--computes", nargs="+", type=float, default=BUDGETS, help="budgets of baselines and of the table")
    parser.add_argument("--baselines", nargs="+", help="which baselines are trained, as --agent names them; default: all")
    parser.add_argument("--each-budget", nargs="+", default=[], choices=list(STUDIES), help="studies with a policy for each budget besides")
    parser.add_argument("--rows", type=int, help="rows of each split to measure on; default: all")
    parser.add_argument("--train-only", action="store_true", help="train what is missing, and leave the comparison to another call")
    arguments, more_flags = parser.parse_known_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data = dict(pair.split("=", 1) for pair in arguments.data)
    comparisons: dict[str, Comparison] = {}
    for study in arguments.studies:
        flags = [*(["--data", data[study]] if study in data else []), *more_flags]
        runs = [trained(study, seed, arguments.out, flags, arguments.computes, study in arguments.each_budget) for seed in arguments.seeds]
        for run in runs:
            train_baselines(run, budgets=arguments.computes, only=arguments.baselines, as_exported=arguments.baselines is None)
        if arguments.train_only:
            continue
        policy = TrainConfig.from_json(runs[0]).policy
        if policy.readouts and not policy.jumps:
            print(f"## {study}\n")
            print_tables(runs, arguments.computes)
        else:
            comparisons[study] = compare_and_write(runs, rows=arguments.rows, budgets=arguments.computes)[0]
    if not comparisons:
        return
    names = columns(comparisons)
    print("| data | budget | " + " | ".join(names.values()) + " | ± | oracle gap closed |")
    print("| --- |" + " ---: |" * (len(names) + 3))
    for study, comparison in comparisons.items():
        for point in comparison.operating:
            if point.budget is not None:
                print(line(study, point, names))
    for study, comparison in comparisons.items():
        areas = ", ".join(f"{curve.record.title} {curve.area.value:.1%}" for curve in comparison.curves if curve.record.name != FULL_DEPTH)
        print(f"\n{study}: area between 0.2 and 1: {areas}.", *comparison.verdict.sentences)


if __name__ == "__main__":
    main()
