"""What a run reports: TensorBoard and metrics.jsonl."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboard.compat.proto.event_pb2 import Event
from torch import Tensor

from agents.options.config import TrainConfig
from agents.run.curve_files import EVENTS, CurveFile, CurveWriter
from agents.run.tabs import columns, layout, settings_table
from rl_skip.core.bounded import read_bytes
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write, unwritable
from rl_skip.core.forward import Rollout
from rl_skip.core.policy import JumpRules
from rl_skip.core.reward import Reward
from rl_skip.core.task import Task, score_key
from rl_skip.measure.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BY_ENV_STEPS", "ENV_STEPS", "RUN_RATE", "RunRates", "Telemetry", "rollout_metrics", "score_metric"]

EVENT_FILES = f"{EVENTS}*"
HISTORY = f"{EVENTS}0000000000.resumed"
MEND = "take it out, and the run goes on without what it recorded"
LINES = "metrics.jsonl"
ENV_STEPS = "env_steps"
"""The tag of the environment steps so far; also the folder, inside that of the run, of the curves over them."""
BY_ENV_STEPS = ("rollout/", "eval/", "finished/")
"""The curves that are written over environment steps too, below "by_env_steps/"."""
RUN_RATE = "layers/run_rate_"
WRITTEN_ANEW = ("custom_scalars", "settings/", "layers/run_rates", "final/", "exported/", "model_card/", "remarks/end", "_hparams_/")
"""What a sitting writes once, at its beginning or at the very end of the run."""
MOST_RATES = 2_000
"""Points of a picture over the whole run: more than it has columns."""
FIGURE_DPI = 200
"""Cards are 330 to 700 pixels wide; twice as many are sharp on every screen."""


def score_metric(task: Task, stage: str, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The mean score of a batch, a scalar on the device, under the tag of its stage: "rollout/accuracy"."""
    return {f"{stage}/{score_key(task.score_name)}": task.score(outputs, labels).mean()}


def rollout_metrics(rollout: Rollout, score: Tensor, price: Tensor, reward: Reward, rules: JumpRules) -> dict[str, Tensor]:
    """Metrics of one batch of episodes, as scalars on the device.

    Args:
        score: (B,), of the answers.
        price: (B,), of each row.
        reward: the one that is optimised.
        rules: what the policy may do: without jumps it is said how often rows go on and leave, with them how often each jump is taken.
    """
    decided = rollout.decided.float()
    decisions = decided.sum().clamp(min=1.0)
    taken = rollout.jumps[rollout.decided]
    metrics = {
        "rollout/ep_rew_mean": reward.total(score, rollout.compute, price).mean(),
        "rollout/ep_len_mean": decided.sum(dim=1).mean(),
        "rollout/compute": rollout.compute.mean(),
        "policy/entropy": rollout.entropies.detach().sum() / decisions,
        "price": price.mean(),
    }
    shares = torch.bincount(taken, minlength=rules.max_jump + 1).float() / decisions
    if rules.jumps:
        metrics |= {f"policy/jump_{a}": shares[a] for a in range(rules.max_jump + 1)}
    else:
        metrics |= {"policy/go_on": shares[0], "policy/leave": shares[1:].sum()}
    return metrics | {f"{RUN_RATE}{i}": rate for i, rate in enumerate(rollout.route.float().mean(dim=0))}


class RunRates:
    """How often each layer ran at each step, for a picture: every point of a short run, and of a long one some, as far apart as the others."""

    def __init__(self) -> None:
        self._points: list[tuple[int, list[float]]] = []
        self._latest: tuple[int, list[float]] | None = None
        self._every, self._seen = 1, 0

    def add(self, entry: Mapping[str, float]) -> None:
        """Takes the numbers of one step, if how often layers ran is among them."""
        rates: list[float] = []
        while (name := f"{RUN_RATE}{len(rates)}") in entry:
            rates.append(entry[name])
        if not rates:
            return
        self._latest = int(entry["step"]), rates
        if self._seen % self._every == 0:
            self._points.append(self._latest)
        self._seen += 1
        if len(self._points) > MOST_RATES:
            self._points, self._every = self._points[::2], 2 * self._every

    @property
    def points(self) -> list[tuple[int, list[float]]]:
        """Steps, and how often each layer ran there; the last step is the last of them."""
        return self._points if self._latest is None or self._points[-1] is self._latest else [*self._points, self._latest]


class Telemetry:
    """Writes a run's curves to TensorBoard and to metrics.jsonl. What is not taken, by a full disk for example, ends nothing: it is told, and kept.

    Args:
        folder: the run folder.
        say: is told in a sentence what cannot be written, and once it is.
        resume_after: the last step to keep, for a resumed run; later ones are removed from the files.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], resume_after: int | None = None) -> None:
        self.folder, self._say = folder, say
        lines = folder / LINES
        self.earlier: list[dict[str, float]] = [] if resume_after is None else _forget_after(folder, lines, resume_after)
        """What earlier sittings wrote, with "step" in each."""
        self.latest: dict[str, float] = {}
        """What was written last, with its "step"."""
        self.last_step = 0
        """Of what was written so far; 0 before the first."""
        self.run_rates = RunRates()
        """How often each layer ran, earlier sittings included."""
        purge_step = None if resume_after is None else resume_after + 1  # for a TensorBoard that runs, and has read the removed points
        self.writer = CurveWriter(folder, purge_step)
        self._lines, self._told = CurveFile(lines), False
        self._by_env_steps: CurveWriter | None = None
        if (folder / ENV_STEPS).is_symlink():
            raise UserError(f"{folder / ENV_STEPS} is a link, and nothing is written to what it leads to; {MEND}")
        shutil.rmtree(folder / ENV_STEPS, ignore_errors=True)  # its steps are not those of updates, so it is made anew from the lines
        self._env_steps = 0
        for entry in self.earlier:
            self._note(entry)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers under their tags."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        entry = {"step": step, **values}
        self._note(entry)
        self._lines.write((json.dumps(entry) + "\n").encode())
        self._tell()

    def _note(self, entry: dict[str, float]) -> None:
        """Keeps of an entry what is needed later, which does not grow with the run."""
        self.latest, self.last_step = entry, max(self.last_step, int(entry["step"]))
        self.run_rates.add(entry)
        self._over_env_steps(entry)

    def _over_env_steps(self, entry: dict[str, float]) -> None:
        self._env_steps = int(entry.get(ENV_STEPS, self._env_steps))
        chosen = {name: value for name, value in entry.items() if name.startswith(BY_ENV_STEPS)}
        if self._env_steps == 0 or not chosen:
            return
        if self._by_env_steps is None:
            self._by_env_steps = CurveWriter(self.folder / ENV_STEPS)
        for name, value in chosen.items():
            self._by_env_steps.add_scalar(f"by_env_steps/{name}", value, self._env_steps)

    def evaluation(self, step: int, evaluation: Evaluation, score_name: str) -> dict[str, float]:
        """Writes where the rows of a validation left, and after how many layers, as histograms; returns the numbers of `eval/`."""
        route = evaluation.route.cpu()
        self._histogram("eval/last_layer", (route * torch.arange(route.shape[1])).amax(dim=1), range(route.shape[1]), step)
        self._histogram("eval/layers_run", route.sum(dim=1), range(1, route.shape[1] + 1), step)
        of_eval = {score_key(score_name): evaluation.score, "compute": evaluation.compute, "reward": evaluation.reward, "price": evaluation.price}
        return {f"eval/{name}": value for name, value in of_eval.items()}

    def _histogram(self, tag: str, values: Tensor, possible: range, step: int) -> None:
        """One bar for each possible whole number. TensorBoard stretches the outermost bars that are not empty from `min` to `max`."""
        self.writer.add_histogram_raw(
            tag,
            min=float(values.min()) - 0.5,
            max=float(values.max()) + 0.5,
            num=len(values),
            sum=float(values.sum()),
            sum_squares=float(values.square().sum()),
            bucket_limits=[number + 0.5 for number in possible],
            bucket_counts=[int((values == number).sum()) for number in possible],
            global_step=step,
        )

    def figure(self, tag: str, drawn: "Figure", step: int) -> None:
        """Writes a figure of matplotlib among the images."""
        drawn.set_dpi(FIGURE_DPI)
        self.writer.add_figure(tag, drawn, step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Writes Markdown into the Text tab."""
        self.writer.add_text(tag, markdown, step)

    def settings(self, config: TrainConfig, score_name: str) -> None:
        """Writes, at the beginning of a sitting, every setting as a table, and in which order the custom scalars stand."""
        self.text("settings", settings_table(config))
        self.writer.add_custom_scalars(layout(score_key(score_name)))

    def hyper_parameters(self, config: TrainConfig, metrics: dict[str, float]) -> None:
        """Writes the settings by which runs are told apart with the final metrics, for the HParams tab."""
        self.writer.hyper_parameters(columns(config), metrics)

    def flush(self) -> None:
        """Hands everything to the disk, so that no checkpoint is ahead of the files."""
        for file in self._files():
            file.sync()
        self._tell()

    def refuse_unwritten(self) -> None:
        """Raises `UserError` if something is still not in the files."""
        for file in self._files():
            if file.fault is not None:
                raise unwritable(file.file, file.fault)

    def close(self) -> None:
        """Writes what is left, and closes the files."""
        for file in self._files():
            file.close()

    def _tell(self) -> None:
        lacking = [file for file in self._files() if file.fault is not None]
        if bool(lacking) == self._told:
            return
        self._told = bool(lacking)
        for file in lacking:
            reason = "" if file.fault is None else file.fault.strerror
            self._say(f"{file.file} cannot be written ({reason}); the run goes on, and what is missing is written once there is room")
        if not lacking:
            self._say("all curves are written again")

    def _files(self) -> list[CurveFile]:
        return [self.writer.curve_file, self._lines, *([] if self._by_env_steps is None else [self._by_env_steps.curve_file])]


def _forget_after(folder: Path, lines: Path, last_step: int) -> list[dict[str, float]]:
    """Removes what a stopped run wrote after `last_step`, and all that a sitting writes once. Returns what is left in `lines`.

    TensorBoard alone would do with a purge step; others that read the files would see the points twice. What is kept
    goes into one file whose name sorts first, since readers take the files in that order.

    Raises:
        UserError: if a file is a link, cannot be read, or holds something else.
    """
    entries = _entries(lines, last_step)
    files, history = sorted(folder.glob(EVENT_FILES)), folder / HISTORY
    events = {record: event for file in files for record, event in _events(file)}
    versions = [record for record, event in events.items() if event.file_version]
    kept = sorted((record for record, event in events.items() if _is_kept(event, last_step)), key=lambda record: events[record].step)
    atomic_write(history, b"".join(versions[:1] + kept))
    for file in files:
        if file != history:
            file.unlink()
    if lines.exists():
        atomic_write(lines, b"".join(entries))
    return [json.loads(line) for line in entries]


def _entries(file: Path, last_step: int) -> list[bytes]:
    """The whole lines of `metrics.jsonl` up to a step; none where it is not there. What is written to a link would be written elsewhere."""
    if file.is_symlink():
        raise UserError(f"{file} is a link, and nothing is written to what it leads to; {MEND}")
    if not file.exists():
        return []
    lines = [line for line in read_bytes(file, MEND).splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        return [line for line in lines if _step_of(line) <= last_step]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{file} is not as it was written: each line is an object of numbers with a step; {MEND}") from None


def _step_of(line: bytes) -> int:
    """The step of a line of numbers. Raises what `_entries` takes for another line, also where it or the environment steps are not finite."""
    values = {name: float(value) for name, value in json.loads(line).items()}
    int(values.get(ENV_STEPS, 0.0))
    return int(values["step"])


def _events(file: Path) -> Iterator[tuple[bytes, Event]]:
    """The whole records of an event file, with what they hold."""
    records = _records(read_bytes(file, MEND))
    try:
        yield from ((record, Event.FromString(record[12:-4])) for record in records)
    except Exception:  # what protobuf raises of what is none
        raise UserError(f"{file} is no event file of TensorBoard; {MEND}") from None


def _records(content: bytes) -> Iterator[bytes]:
    """The records of an event file, each with its frame: length (8 bytes), checksum (4), data, checksum (4). One that was cut short is left out."""
    begin = 0
    while begin + 12 <= len(content):
        end = begin + 16 + struct.unpack_from("<Q", content, begin)[0]
        if end > len(content):
            return
        yield content[begin:end]
        begin = end


def _is_kept(event: Event, last_step: int) -> bool:
    tags = [value.tag for value in event.summary.value]
    return event.step <= last_step and bool(tags) and not any(tag.startswith(WRITTEN_ANEW) for tag in tags)
