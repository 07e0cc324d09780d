"""How often `--guarantee` of each kind is refused, keeps its word, and what compute it leaves: random re-splits of runs' validation and test rows.

Each time the rows of both splits are pooled, so many are drawn anew as validation rows, and the guarantee is found on them. The loss of score
against full depth is then measured on the rows that were not drawn and, as the best estimate of the truth, on all. Where it is refused, full
depth is run, which loses nothing.

    python benchmarks/guarantee.py runs/digits
    python benchmarks/guarantee.py runs/sst2 runs/banking77 --tolerance 0.02 --rows 100 200 400 --splits 1000 --cache /tmp/outcomes

A run with readouts and without jumps is measured in one pass of each split, others in one pass at each price.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_skip.core.dial import GuaranteeKind, price_grid
from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task
from rl_skip.export.policy_folder import DESCRIPTION, POLICY, SkipModel
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import evaluate_prices
from rl_skip.measure.guarantee import smallest_guaranteed
from rl_skip.measure.runs import load_run, read_run

SPLITS: tuple[Split, Split] = ("validation", "test")


@dataclass(frozen=True)
class Outcomes:
    """What each of K prices leads to on N rows."""

    full: Tensor
    """(N,), the score at full depth."""
    score: Tensor
    """(N, K)."""
    compute: Tensor
    """(N, K), relative compute."""


@dataclass(frozen=True)
class Record:
    """How a kind of guarantee fared over the re-splits of a run."""

    run: str
    rows: int
    """Validation rows drawn each time."""
    kind: GuaranteeKind
    refused: float
    """Share of the re-splits; in all that follows full depth is run there."""
    exceeded: float
    """Share of the re-splits where the loss on the rows that were not drawn is above the tolerance."""
    exceeded_all_rows: float
    """The same for the loss on all rows."""
    loss: float
    """Mean loss of score on the rows that were not drawn."""
    lost: float
    """The same, what was gained on other rows not set against it: what a guarantee in expectation bounds."""
    compute: float
    """Mean compute on the rows that were not drawn."""


def outcomes_of(model: SkipModel, task: Task, examples: Examples, prices: list[float]) -> Outcomes:
    """Scores and computes at each price."""
    full = evaluate(model.stack, torch.ones(model.stack.depth, dtype=torch.bool), task, examples).correct
    at_prices = evaluate_prices(model.stack, model.policy, task, examples, prices)
    scores, computes = ([getattr(at, name) for at in at_prices] for name in ("correct", "compute_by_row"))
    return Outcomes(full, torch.stack(scores, dim=1), torch.stack(computes, dim=1))


def measured(folder: Path, data: str | None, cache: Path | None) -> tuple[list[float], Outcomes]:
    """The prices that a guarantee tries, and what they lead to on the rows of both splits; read from `cache` where it holds them."""
    policy = read_run(folder).policy
    digest = hashlib.sha256((policy / DESCRIPTION).read_bytes() + (policy / POLICY).read_bytes()).hexdigest()
    file = None if cache is None else cache / f"{folder.name}-{digest[:16]}.pt"
    model, task = load_run(folder, data=data)
    layout = model.rules.layout
    prices = price_grid(layout.price_low, layout.price_high) if model.table.points else [model.price]
    if file is not None and file.is_file():
        return prices, Outcomes(**torch.load(file))
    parts = [outcomes_of(model, task, task.load(split), prices) for split in SPLITS]
    outcomes = Outcomes(*(torch.cat([getattr(part, name) for part in parts]).double() for name in ("full", "score", "compute")))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(outcomes), file)
    return prices, outcomes


def resplit(run: str, prices: list[float], outcomes: Outcomes, rows: int, tolerance: float, splits: int, seed: int) -> Iterator[Record]:
    """One record for each kind, on the same draws."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(outcomes.full), generator=generator) for _ in range(splits)]
    difference = outcomes.full.unsqueeze(1) - outcomes.score  # (N, K)
    for kind in get_args(GuaranteeKind):
        found = []  # refused, exceeded, exceeded on all rows, loss, lost, compute of each re-split
        for order in orders:
            drawn, others = order[:rows], order[rows:]

            def measured_at(price: float, drawn: Tensor = drawn) -> tuple[Tensor, Tensor]:
                k = prices.index(price)
                return outcomes.score[drawn, k], outcomes.compute[drawn, k]

            try:
                k = prices.index(smallest_guaranteed(prices, measured_at, outcomes.full[drawn], tolerance, kind).price)
            except UserError:
                found.append([1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
                continue
            loss, all_rows, lost = difference[others, k].mean(), difference[:, k].mean(), difference[others, k].clamp(min=0).mean()
            compute = outcomes.compute[others, k].mean()
            found.append([0.0, float(loss > tolerance), float(all_rows > tolerance), float(loss), float(lost), float(compute)])
        yield Record(run, rows, kind, *torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 200, 350, 872, 1666], help="validation rows to draw; at most half of all")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--data", help="where the data are, if not where the runs read them")
    parser.add_argument("--cache", type=Path, help="a folder where what was measured is kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line and nothing else")
    options = parser.parse_args()
    if not 0 < options.tolerance < 1:
        parser.error(f"a tolerance is a loss of score in (0, 1), 0.01 being one point, got {options.tolerance}; set --tolerance")
    torch.set_num_threads(options.threads)
    if not options.json:
        print("| run, rows in all | validation rows | kind | refused | exceeded, other rows | exceeded, all rows | mean loss | rows lost | compute |")
        print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for folder in options.runs:
        prices, outcomes = measured(folder, options.data, options.cache)
        N = len(outcomes.full)
        for rows in (rows for rows in options.rows if rows <= N / 2):
            for at in resplit(str(folder), prices, outcomes, rows, options.tolerance, options.splits, options.seed):
                shares = f"{at.refused:.0%} | {at.exceeded:.1%} | {at.exceeded_all_rows:.1%} | {at.loss:+.2%} | {at.lost:.2%} | {at.compute:.3f}"
                print(json.dumps(asdict(at)) if options.json else f"| {folder.name}, {N} | {rows} | {at.kind} | {shares} |")


if __name__ == "__main__":
    main()
