"""Five-fold cross-validation on digits, so that all 1,797 rows are test rows once: a task for each fold, and one command for them all.

    python benchmarks/folds.py [--out runs/folds] [--computes 0.13 0.25 0.5] [flags of train.py]

Each fold is a run of its own, `python train.py --task benchmarks/folds.py:fold --data K`. A fifth of the rows is tested on, a fifth validates.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from agents.baselines.training import train_baselines
from benchmarks.exits import print_tables
from benchmarks.table import train
from rl_skip import Examples, Split, Task
from rl_skip.core.errors import UserError
from rl_skip.tasks.digits import digits

FOLDS = 5


def fold(number: str | None) -> Task:
    """The task `digits` with another fifth of all rows as test rows, 0 to 4; the fifth after it validates."""
    name = Path(number or "").name  # a run keeps the whole path of its data
    if name not in map(str, range(FOLDS)):
        raise UserError(f"there is no fold {number}; set --data to 0 … {FOLDS - 1}")
    whole = digits()
    parts = [whole.load(split) for split in ("train", "validation", "test")]
    inputs, labels = torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])  # type: ignore[misc]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    fifth = torch.arange(len(labels)) % FOLDS
    test, validation = int(name), (int(name) + 1) % FOLDS
    chosen = {"test": fifth == test, "validation": fifth == validation, "train": (fifth != test) & (fifth != validation)}
    rows = {split: order[mask].sort().values for split, mask in chosen.items()}

    def load(split: Split) -> Examples:
        return Examples(inputs[rows[split]], labels[rows[split]])

    return replace(whole, name=f"digits, fold {name}", load=load, labels=lambda split: labels[rows[split]])


def main() -> None:
    """Trains what is missing, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/folds"))
    parser.add_argument("--computes", nargs="+", type=float, default=[0.15, 0.25, 0.5])
    parser.add_argument("--baselines", nargs="+", help="which baselines are trained, as --agent names them; default: all")
    options, flags = parser.parse_known_args()
    runs = [options.out / f"fold-{number}" for number in range(FOLDS)]
    for number, run in enumerate(runs):
        train(run, ["--task", f"{Path(__file__).resolve()}:fold", "--data", str(number), *flags], allow_code=True)
        train_baselines(run, budgets=options.computes, only=options.baselines, as_exported=False, allow_code=True)
    print_tables(runs, options.computes, pooled=True, allow_code=True)


if __name__ == "__main__":
    main()
