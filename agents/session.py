"""A training run from its options to its folder: warm-up, agent, calibration, export, final table."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from agents.calibration import calibrate
from agents.config import TrainConfig
from agents.learner import Learner, pick_device
from agents.ppo import Ppo
from agents.prices import price_source
from agents.reinforce import Reinforce
from agents.report import final_report, print_report
from agents.telemetry import Averages, Display, Telemetry
from rl_skip.dial import PriceTable
from rl_skip.errors import UserError
from rl_skip.evaluation import Evaluation, evaluate
from rl_skip.export import save
from rl_skip.network import network_to_json
from rl_skip.tasks import Task, load_task

__all__ = ["Session", "train"]

REPORTS_PER_EPOCH = 2


def train(config: TrainConfig, console: Console | None = None) -> Path:
    """Trains, exports and reports. Returns the run folder.

    Raises:
        UserError: before anything is written, if the options, the data or the run folder do not allow it.
    """
    console = console or Console()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    device = _available(pick_device(config.device))
    task = load_task(config.task, config.data)
    folder = config.folder
    if folder.exists() and not config.overwrite:
        raise UserError(f"the run folder {folder} exists; name another with --out, or replace it with --overwrite")
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} is not a run folder, so it is not replaced; name another with --out")
    session = Session(config, task, device)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    session.run(folder, console)
    return folder


def _available(device: torch.device) -> torch.device:
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device.type]:
        raise UserError(f"there is no {device.type} device here; set --device auto or cpu")
    return device


class Session:
    """One run: holds the learner and its agent, and takes them from the first update to the export."""

    def __init__(self, config: TrainConfig, task: Task, device: torch.device) -> None:
        self.config, self.task = config, task
        self.learner = Learner(config, task, device)
        self.prices = price_source(config.pricing)
        self.agent = Reinforce(self.learner, self.prices) if config.agent == "reinforce" else Ppo(self.learner, self.prices)

    def run(self, folder: Path, console: Console) -> None:
        """Trains, then calibrates, exports and reports."""
        telemetry = Telemetry(folder)
        begun = time.monotonic()
        self._train(telemetry, console)
        table, price = calibrate(self.learner, self.prices)
        self._export(folder / "policy", table, price)
        report = final_report(self.learner, table, price, seconds=time.monotonic() - begun)
        telemetry.heat_map(self.learner.updates)
        final = {f"final/{name}": report["policy"][name] for name in ("accuracy", "compute", "reward")}
        telemetry.hyper_parameters(self.config.to_json(), final)
        telemetry.close()
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        print_report(report, folder, console)

    def _train(self, telemetry: Telemetry, console: Console) -> None:
        learner, averages = self.learner, Averages()
        every = max(learner.updates_per_epoch // REPORTS_PER_EPOCH, 1)
        since, samples = time.monotonic(), 0
        with Display(console, learner.updates) as display:
            for update in range(learner.updates):
                warming = update < learner.warmup_updates
                averages.add(learner.warmup_update(update) if warming else self.agent.update(update))
                samples += self.config.schedule.batch_size
                if (update + 1) % every == 0 or update + 1 == learner.updates:
                    values = averages.read() | self.prices.metrics() | {"time/samples_per_second": samples / (time.monotonic() - since)}
                    since, samples = time.monotonic(), 0
                    telemetry.scalars(update + 1, values | self._validate(update + 1))
                    display.show("warm-up" if warming else self.config.agent, update + 1, values)

    def _validate(self, done: int) -> dict[str, float]:
        """Validation at the typical price, every few epochs and at the end of the training."""
        learner = self.learner
        interval = self.config.schedule.eval_epochs * learner.updates_per_epoch
        if done <= learner.warmup_updates or (done // interval == (done - 1) // interval and done != learner.updates):
            return {}
        found = self.measure(self.prices.typical)
        return {"eval/accuracy": found.accuracy, "eval/compute": found.compute, "eval/reward": found.reward}

    def measure(self, price: float) -> Evaluation:
        """The greedy policy on validation data."""
        learner = self.learner
        return evaluate(learner.stack, learner.policy, self.task, learner.validation, price=price)

    def _export(self, folder: Path, table: PriceTable, price: float) -> None:
        config, learner, task = self.config, self.learner, self.task
        trained_on: dict[str, Any] = {"task": task.name, "rows": len(learner.train), "seed": config.seed, "agent": config.agent}
        network = network_to_json(config.network, task.embedding, task.tokens, len(task.classes))
        save(folder, learner.policy, stack=learner.stack, network=network, price=price, price_table=table, trained_on=trained_on)
