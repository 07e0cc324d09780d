"""A pretrained model on sentences: fine-tuned at full depth, trained with a policy, and set beside its own first k layers.

The full model is fine-tuned first, and the policy's run goes on from there. The baselines are the pretrained model's first k
layers, fine-tuned for as many updates as both together; of their epochs the best on validation counts. All are
measured on test data, and timed in batches of 32 as transformers calls the model, tokens made beforehand.
Flags that are not its own go to train.py. What is there already is read, not trained anew.

    python benchmarks/sst2.py MODEL DATA
    python benchmarks/sst2.py MODEL DATA --train-file train_phrases.tsv.gz --full-epochs 1 --epochs 1
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rl_skip
import train
from agents.agent import has_report
from agents.options.config import TrainConfig
from agents.run.learner import Learner
from agents.run.warmup import RandomRoutes
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.pretrained import load_model
from rl_skip.core.clock import seconds_per_batch
from rl_skip.core.inputs import Inputs
from rl_skip.core.task import Examples, Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task

BATCH, BATCHES = 32, 12
DONE = "benchmark.json"


def fine_tuned(folder: Path, config: TrainConfig, epochs: int, layers: int | None = None) -> tuple[HuggingFaceStack, Task]:
    """The pretrained model, or its first layers alone, after so many epochs of supervised training at the depth that it has."""
    task = load_task(config.task, config.data, config.options)
    if not (folder / DONE).is_file():
        schedule = replace(config.schedule, tune="frozen", warmup_epochs=epochs, epochs=1, random_route_weight=0.0)  # the warm-up alone is run
        torch.manual_seed(config.seed)
        stack = task.build(config.network)
        learner = Learner(replace(config, schedule=schedule), task, torch.device("cpu"), stack)
        if layers is not None:
            learner.full_route[layers:] = False
        warm_up, begun, best = RandomRoutes(learner), time.monotonic(), -1.0
        for update in range(learner.warmup_updates):
            warm_up.update(update)
            if (update + 1) % learner.updates_per_epoch == 0:
                accuracy = evaluate(stack, learner.full_route, task, learner.validation).score
                print(f"{folder.name}: epoch {(update + 1) // learner.updates_per_epoch}, validation {accuracy:.1%}", flush=True)
                if accuracy >= best:
                    best = accuracy
                    stack.write_model(folder / "model")
        summary = {"validation": best, "updates": learner.warmup_updates, "seconds": time.monotonic() - begun}
        (folder / DONE).write_text(json.dumps(summary) + "\n")
    trained = load_model(str(folder / "model"), task.classes)
    return trained if layers is None else trained.keep(range(layers)), task


def milliseconds(models: dict[str, nn.Module], test: Examples) -> dict[str, float]:
    """Of a batch of 32 rows of test data, by each model, in turns."""
    batches: list[Inputs] = [test.take(slice(n * BATCH, (n + 1) * BATCH)).inputs for n in range(min(BATCHES, len(test) // BATCH))]

    def in_turn(model: nn.Module) -> Callable[[], object]:
        upcoming = cycle(batches)
        return lambda: model(**next(upcoming))

    times = seconds_per_batch({name: in_turn(model.eval()) for name, model in models.items()}, torch.device("cpu"), repeats=5 * BATCHES)
    return {name: 1000 * seconds for name, seconds in times.items()}


def attached(run: SkipModel, folder: Path, price: float) -> nn.Module:
    """The run's model with its policy at a price, a copy for itself."""
    assert isinstance(run.stack, HuggingFaceStack)
    model = copy.deepcopy(run.stack.model)
    rl_skip.attach(model, folder / "policy").price = price
    return model


def main() -> None:
    """Trains what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of a pretrained model with its tokenizer")
    parser.add_argument("data", help="the folder with train, dev and test")
    parser.add_argument("--out", type=Path, default=Path("runs/sst2"), help="where all that is trained goes")
    parser.add_argument("--full-epochs", type=int, default=2, help="of fine-tuning at full depth, before the policy's run")
    parser.add_argument("--first", type=int, nargs="*", default=[2, 3], help="how many first layers each baseline has")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.5, 0.55])
    arguments, more_flags = parser.parse_known_args()
    flags = ["--task", "text", "--data", arguments.data, "--no-begin-again", *more_flags]
    config = train.read_options([*flags, "--model", arguments.model])
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    full, task = fine_tuned(arguments.out / "full", config, arguments.full_epochs)
    run = arguments.out / "policy"
    if not has_report(run):
        train.main([*flags, "--model", str(arguments.out / "full" / "model"), "--out", str(run), "--overwrite"])
    epochs = arguments.full_epochs + config.schedule.warmup_epochs + config.schedule.epochs
    baselines = {f"first {k} layers": fine_tuned(arguments.out / f"first-{k}", config, epochs, layers=k)[0] for k in arguments.first}
    test = task.load("test")
    model, _ = load_run(run)
    rows: dict[str, tuple[float, float]] = {}
    models: dict[str, nn.Module] = {"bare model": full.model}
    depth = full.depth
    for name, stack in {"bare model": full, "the run's model, all layers": model.stack, **baselines}.items():
        evaluation = evaluate(stack, torch.ones(stack.depth, dtype=torch.bool), task, test)
        rows[name] = evaluation.score, stack.depth / depth
    models |= {name: stack.model for name, stack in baselines.items()}
    prices = {"policy, as exported": model.price}
    for budget in arguments.budgets:
        least = model.table.points[0]
        prices[f"policy, budget {budget:g}"] = model.table.price_for(budget) if budget >= least.compute else least.price
    for name, price in prices.items():
        evaluation = evaluate(model.stack, model.policy, task, test, price=price)
        rows[name] = evaluation.score, evaluation.compute
        models[name] = attached(model, run, price)
    with torch.no_grad():
        times = milliseconds(models, test)
    tuned = json.loads((arguments.out / "full" / DONE).read_text())["seconds"] / 60
    print(f"{tuned:.0f} minutes of fine-tuning, {json.loads((run / 'report.json').read_text())['seconds'] / 60:.0f} of the policy's run\n")
    print(f"| {len(test)} test rows | accuracy | compute | ms per {BATCH} rows | times as fast |", "| --- | ---: | ---: | ---: | ---: |", sep="\n")
    for name, (accuracy, compute) in rows.items():
        timed = f"{times[name]:.1f} | {times['bare model'] / times[name]:.2f}" if name in times else " | "
        print(f"| {name} | {accuracy:.1%} | {compute:.3f} | {timed} |")


if __name__ == "__main__":
    main()
