"""A classifier and its policy trained in a person's own loop, in plain PyTorch, with Accelerate and in Trainer, beside `train.py`.

The loops are those in `examples/`. All begin from one fine-tuned classifier; what `--model` names is fine-tuned first unless it is a classifier for
these classes already. The loops run for as many epochs as `train.py` does, warm-up included. Measured is the test data at one budget of the dial,
the model called as its user calls it. What is there already in `--out` is read, not trained anew.

    python benchmarks/own_loop.py --model MODEL --data DATA
    python benchmarks/own_loop.py --model MODEL --data DATA --train-rows 64 --epochs 1 --out runs/smoke
"""

import argparse
import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import transformers

import rl_skip
from benchmarks.training import trained
from rl_skip.attached.classes import has_classifier, name_classes
from rl_skip.attached.pretrained import read_config
from rl_skip.core.inputs import take_rows, trimmed
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BATCH, FINE_TUNING_EPOCHS, RATE = 32, 2, 5e-5
RESULT = "result.json"


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Examples row by row, as loaders and the Trainer take them."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        inputs = take_rows(self.examples.inputs, slice(row, row + 1))
        assert isinstance(inputs, dict)
        return {name: tensor[0] for name, tensor in inputs.items()} | {"labels": self.examples.labels[row]}


def batch_of(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows as one batch, without padding that none of them needs."""
    whole = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    labels, inputs = whole.pop("labels"), trimmed(whole)
    assert isinstance(inputs, dict)
    return inputs | {"labels": labels}


def loader(examples: Examples, shuffle: bool = False) -> DataLoader[dict[str, torch.Tensor]]:
    """Batches of examples."""
    return DataLoader(Rows(examples), BATCH, shuffle=shuffle, collate_fn=batch_of)


def fine_tuned(source: str, folder: Path, task: Task, train: Examples, tokenizer: Any) -> Path:
    """A classifier for the task: `source` itself, or in `folder` what it became after some epochs without a policy."""
    config = read_config(source)
    if has_classifier(config) and config.num_labels == len(task.classes):
        return Path(source)
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(task.classes))
        name_classes(model.config, task.classes)
        optimizer, batches = torch.optim.AdamW(model.parameters(), RATE), loader(train, shuffle=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, FINE_TUNING_EPOCHS * len(batches))
        for _ in range(FINE_TUNING_EPOCHS):
            for batch in batches:
                optimizer.zero_grad()
                model.train()(**batch).loss.backward()
                optimizer.step()
                schedule.step()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def in_trainer(
    model: nn.Module, train: Examples, validation: Examples, config: rl_skip.SkipConfig, epochs: int, folder: Path
) -> rl_skip.LearningHandle:
    """The loop of `examples/own_loop_trainer.py`."""
    options = {"num_train_epochs": epochs, "learning_rate": RATE, "weight_decay": 0.01, "per_device_train_batch_size": BATCH}
    quiet = {"report_to": ["tensorboard"], "disable_tqdm": True, "logging_steps": 20}
    run = runpy.run_path(str(EXAMPLES / "own_loop_trainer.py"))["train"]
    return run(model, Rows(train), Rows(validation), config, str(folder / "trainer"), batch_of, **options, **quiet).handle


def in_loop(
    name: str, model: nn.Module, train: Examples, validation: Examples, config: rl_skip.SkipConfig, epochs: int, _folder: Path
) -> rl_skip.LearningHandle:
    """The loop of another example."""
    run = runpy.run_path(str(EXAMPLES / f"{name}.py"))["train"]
    return run(model, loader(train, shuffle=True), loader(validation), config, epochs=epochs, learning_rate=RATE)


LOOPS: dict[str, Callable[..., rl_skip.LearningHandle]] = {
    "plain PyTorch": partial(in_loop, "own_loop"),
    "Accelerate": partial(in_loop, "own_loop_accelerate"),
    "Trainer": in_trainer,
}


@torch.no_grad()
def measured(model: nn.Module, handle: rl_skip.Handle, test: Examples, budget: float) -> tuple[float, float]:
    """Accuracy on test data and the compute that it took, at a budget, or at the smallest that the policy has."""
    handle.budget = max(budget, handle.table.points[0].compute)
    model.eval()
    right, spent = [], []
    for batch in loader(test):
        labels = batch.pop("labels")
        right.append(model(**batch).logits.argmax(dim=1) == labels)
        spent.append(handle.last_compute)
    return float(torch.cat(right).float().mean()), float(torch.cat(spent).mean())


def main() -> None:
    """Trains what is not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the folder of a fine-tuned classifier, or of a pretrained model, with its tokenizer")
    parser.add_argument("--data", required=True, help="the folder with train, dev and test, or banking77")
    parser.add_argument("--out", type=Path, default=Path("runs/own-loop"), help="where all that is trained goes")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--steered", action="store_true", help="trains for the budget alone; else for every price, and the dial gives the budget")
    parser.add_argument("--epochs", type=int, default=6, help="of the loops; train.py has two of warm-up and the rest with the policy")
    parser.add_argument("--train-rows", type=int, help="rows to train on; default: all")
    parser.add_argument("--loops", nargs="*", choices=list(LOOPS), default=list(LOOPS))
    given = parser.parse_args()
    task = load_task("text", given.data, TaskOptions(model=given.model))
    train, validation, test = task.load("train"), task.load("validation"), task.load("test")
    train = train if given.train_rows is None else train.some(given.train_rows)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    begin = fine_tuned(given.model, given.out / "fine-tuned", task, train, tokenizer)
    budget = {"budget": given.budget} if given.steered else {}
    results: dict[str, tuple[float, float, float]] = {}
    for name in given.loops:
        folder = given.out / ("steered" if given.steered else "dial") / name.replace(" ", "-").lower()
        if not (folder / RESULT).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # a loop that was cut short
            torch.manual_seed(0)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(begin)
            begun = time.monotonic()
            handle = LOOPS[name](model, train, validation, rl_skip.SkipConfig(**budget), given.epochs, folder)
            seconds = time.monotonic() - begun
            handle.save_pretrained(folder / "policy")
            accuracy, compute = measured(model, handle, test, given.budget)
            (folder / RESULT).write_text(json.dumps({"accuracy": accuracy, "compute": compute, "seconds": seconds}) + "\n")
        read = json.loads((folder / RESULT).read_text())
        results[name] = read["accuracy"], read["compute"], read["seconds"]
        print(f"{name}: {results[name][0]:.1%} at a compute of {results[name][1]:.3f}", flush=True)
    flags = ["--task", "text", "--data", given.data, "--model", str(begin), "--no-begin-again", "--epochs", str(max(given.epochs - 2, 1))]
    flags += ["--budget", str(given.budget)] if given.steered else []
    flags += [] if given.train_rows is None else ["--train-rows", str(given.train_rows)]
    run = trained(given.out / f"train-py{'-steered' if given.steered else ''}", *flags)
    network, _ = load_run(run)
    least = network.table.points[0].compute
    price = network.price if given.steered else network.table.price_for(max(given.budget, least))
    evaluation = evaluate(network.stack, network.policy, task, test, price=price)
    results["train.py"] = evaluation.score, evaluation.compute, json.loads((run / "report.json").read_text())["seconds"]
    print(f"\n| {len(test)} test rows, budget {given.budget:g} | accuracy | compute | minutes |", "| --- | ---: | ---: | ---: |", sep="\n")
    for name, (accuracy, compute, seconds) in results.items():
        print(f"| {name} | {accuracy:.1%} | {compute:.3f} | {seconds / 60:.1f} |")


if __name__ == "__main__":
    main()
