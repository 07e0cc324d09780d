"""Whether `--guarantee` keeps its word: random re-splits of a run's validation and test rows.

Each time both splits are pooled and halved anew at random. The price table is built on one half, as training builds it, and
the guarantee is tested on the same half. The loss of accuracy against full depth is then measured on the other half, and,
as the best estimate of the truth, on all rows.

    python benchmarks/guarantee.py runs/digits
    python benchmarks/guarantee.py runs/digits --tolerance 0.02 --splits 1000 --json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_skip.core.dial import PricePoint, PriceTable, price_grid  # noqa: E402
from rl_skip.core.errors import UserError  # noqa: E402
from rl_skip.measure.evaluation import evaluate  # noqa: E402
from rl_skip.measure.guarantee import smallest_guaranteed  # noqa: E402
from rl_skip.measure.runs import load_run  # noqa: E402
from rl_skip.tasks import Split  # noqa: E402

SPLITS: tuple[Split, Split] = ("validation", "test")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One record per re-split, and the counts."""
    torch.set_num_threads(options.threads)
    model, task = load_run(options.run, data=options.data)
    splits = [task.load(split) for split in SPLITS]
    layout = model.rules.layout
    prices = price_grid(layout.price_low, layout.price_high)
    everything = torch.ones(model.stack.depth, dtype=torch.bool)
    full = torch.cat([evaluate(model.stack, everything, task, split).correct for split in splits])  # (N,)
    evaluations = {price: [evaluate(model.stack, model.policy, task, split, price=price) for split in splits] for price in prices}
    correct = {price: torch.cat([evaluation.correct for evaluation in both]) for price, both in evaluations.items()}  # (N,) each
    compute = {price: torch.cat([evaluation.compute_by_row for evaluation in both]) for price, both in evaluations.items()}  # (N,) each

    def mean(values: Tensor) -> float:
        return float(values.double().mean())

    generator = torch.Generator().manual_seed(options.seed)
    records: list[dict[str, Any]] = []
    for _ in range(options.splits):
        order = torch.randperm(len(full), generator=generator)
        validation, test = order[: len(order) // 2], order[len(order) // 2 :]
        table = PriceTable.monotone(PricePoint(price, mean(compute[price][validation]), mean(correct[price][validation])) for price in prices)
        candidates = [point.price for point in reversed(table.points)]
        try:
            given = smallest_guaranteed(candidates, lambda price, rows=validation: correct[price][rows], full[validation], options.tolerance)  # type: ignore[misc]
        except UserError as error:
            records.append({"refused": str(error)})
            continue
        lost = full - correct[given.price]
        records.append(
            {
                "price": given.price,
                "compute": mean(compute[given.price][test]),
                "losses": given.losses,
                "gains": given.gains,
                "loss_test_half": mean(lost[test]),
                "loss_all_rows": mean(lost),
            }
        )
    given_records = [record for record in records if "price" in record]
    return {
        "run": str(options.run),
        "tolerance": options.tolerance,
        "rows": len(full),
        "rows_validation": len(full) // 2,
        "full_depth_accuracy": mean(full),
        "loss_by_price": {f"{price:.4g}": mean(full - correct[price]) for price in prices},
        "refused": len(records) - len(given_records),
        "exceeded_test_half": sum(record["loss_test_half"] > options.tolerance for record in given_records),
        "exceeded_all_rows": sum(record["loss_all_rows"] > options.tolerance for record in given_records),
        "splits": records,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--data", help="where the data are, if not where the run read them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    report = measure(options)
    if options.json:
        print(json.dumps(report))
        return
    print(f"{report['run']}: {report['rows_validation']} of {report['rows']} rows for validation, at most {options.tolerance:g} of accuracy to lose")
    for n, record in enumerate(report["splits"]):
        if "refused" in record:
            print(f"{n:3}  refused: {record['refused']}")
            continue
        seen = f"price {record['price']:.4g}, compute {record['compute']:.3f}, {record['losses']} lost, {record['gains']} gained on validation"
        print(f"{n:3}  {seen}; loss on the other half {record['loss_test_half']:+.4f}, on all rows {record['loss_all_rows']:+.4f}")
    exceeded = f"exceeded on the other half {report['exceeded_test_half']} times, on all rows {report['exceeded_all_rows']} times"
    print(f"{options.splits} re-splits: {report['refused']} refused, {exceeded}")


if __name__ == "__main__":
    main()
