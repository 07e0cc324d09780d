"""Trains several runs and prints one line of a table for each: the figures of docs/notes.md.

Flags that are not its own go to train.py.

    python benchmarks/study.py digits
    python benchmarks/study.py speech --data recordings.tar.gz
    python benchmarks/study.py budgets --task digits
    python benchmarks/study.py budgets --task speech --data recordings.tar.gz
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import trained


def studies(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The runs of a study: the name of each and its flags."""
    seeds = [str(seed) for seed in arguments.seeds]
    if arguments.study == "budgets":
        return {
            f"{arguments.task}-{agent}-budget-{budget}-{seed}": ["--task", arguments.task, "--agent", agent, "--budget", budget, "--seed", seed]
            for agent in arguments.agents
            for budget in ("0.25", "0.5", "0.75")
            for seed in seeds
        }
    task = arguments.study
    return {f"{task}-{agent}-{seed}": ["--task", task, "--agent", agent, "--seed", seed] for agent in arguments.agents for seed in seeds}


def spread_at_the_end(run: Path) -> float:
    """Standard deviation of the sampled routes' compute over the last quarter of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    computes = [(line["step"], line["rollout/compute"]) for line in lines if "rollout/compute" in line]
    first, last = computes[0][0], computes[-1][0]
    return statistics.pstdev(compute for step, compute in computes if step >= last - (last - first) / 4)


def main() -> None:
    """Trains what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["digits", "speech", "images", "budgets"])
    parser.add_argument("--task", default="digits", help="the task of the study of budgets")
    parser.add_argument("--data", help="where the data of speech or images are")
    parser.add_argument("--agents", nargs="+", default=["reinforce", "ppo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the run folders go; those that exist are read, not trained anew")
    arguments, more_flags = parser.parse_known_args()
    print("| run | accuracy | compute | full depth | best fixed route | random routes | deviation of compute | training, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, flags in studies(arguments).items():
        data = ["--data", arguments.data] if arguments.data else []
        run = trained(arguments.out / name, *flags, *data, *more_flags)
        report = json.loads((run / "report.json").read_text())
        others = " | ".join(f"{report[other]['accuracy']:.1%}" for other in ("full depth", "best fixed route", "random routes"))
        policy, spread = report["policy"], spread_at_the_end(run)
        print(f"| {name} | {policy['accuracy']:.1%} | {policy['compute']:.3f} | {others} | {spread:.3f} | {report['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
