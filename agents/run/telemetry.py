"""What a run reports: TensorBoard and metrics.jsonl."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event
from torch import Tensor

from agents.run.curve_files import EVENTS, CurveFile, CurveWriter
from rl_skip.core.bounded import read_bytes
from rl_skip.core.errors import UserError
from rl_skip.core.fields import flat
from rl_skip.core.files import atomic_write, unwritable
from rl_skip.core.forward import Rollout
from rl_skip.core.reward import Reward
from rl_skip.core.task import Task, score_key

__all__ = ["Telemetry", "rollout_metrics", "score_metric"]

LINES = "metrics.jsonl"
EVENT_FILES = f"{EVENTS}*"
HISTORY = f"{EVENTS}0000000000.resumed"
HEAT_MAP = "layers/run_rates"
MEND = "take it out, and the run goes on without what it recorded"
WRITTEN_LAST = (HEAT_MAP, "final/", "_hparams_/")


def score_metric(task: Task, stage: str, outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The mean score of a batch, a scalar on the device, under the tag of its stage: "rollout/accuracy"."""
    return {f"{stage}/{score_key(task.score_name)}": task.score(outputs, labels).mean()}


def rollout_metrics(rollout: Rollout, score: Tensor, price: Tensor, reward: Reward, max_jump: int) -> dict[str, Tensor]:
    """Metrics of one batch of episodes, as scalars on the device. `score` and `price` are (B,); `reward` is the one that is optimised."""
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
    shares = torch.bincount(taken, minlength=max_jump + 1).float() / decisions
    metrics |= {f"policy/jump_{a}": shares[a] for a in range(max_jump + 1)}
    return metrics | {f"layers/run_rate_{i}": rate for i, rate in enumerate(rollout.route.float().mean(dim=0))}


class Telemetry:
    """Writes a run's curves to TensorBoard and to metrics.jsonl. What is not taken, by a full disk for example, ends nothing: it is told, and kept.

    Args:
        folder: the run folder.
        say: is told in a sentence what cannot be written, and once it is.
        resume_after: the last step to keep, for a resumed run; later ones are removed from the files.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], resume_after: int | None = None) -> None:
        lines, self._say = folder / LINES, say
        entries = [] if resume_after is None else _forget_after(folder, lines, resume_after)
        purge_step = None if resume_after is None else resume_after + 1  # for a TensorBoard that runs, and has read the removed points
        self.writer = CurveWriter(folder, purge_step)
        self._files = [self.writer.curve_file, CurveFile(lines)]
        self._told = False
        self._run_rates = [rates for entry in entries if (rates := _run_rates(entry))]

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers under their tags."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if rates := _run_rates(values):
            self._run_rates.append(rates)
        self._files[1].write((json.dumps({"step": step, **values}) + "\n").encode())
        self._tell()

    def heat_map(self, step: int) -> None:
        """Draws the run rates of all layers over time as one picture: a row per layer, time to the right, dark runs always."""
        if not self._run_rates:
            return
        rates = 1 - torch.tensor(self._run_rates).T  # (L, time)
        wide = rates.repeat_interleave(max(320 // rates.shape[1], 1), dim=1).repeat_interleave(20, dim=0)
        self.writer.add_image(HEAT_MAP, wide.unsqueeze(0), step, dataformats="CHW")

    def hyper_parameters(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes the settings with the final metrics, for the HParams tab; the metrics' names begin with "final/"."""
        plain = {name: value if isinstance(value, bool | str | float | int) else str(value) for name, value in flat(settings).items()}
        self.writer.hyper_parameters(plain, metrics)

    def flush(self) -> None:
        """Hands everything to the disk, so that no checkpoint is ahead of the files."""
        for file in self._files:
            file.sync()
        self._tell()

    def refuse_unwritten(self) -> None:
        """Raises `UserError` if something is still not in the files."""
        for file in self._files:
            if file.fault is not None:
                raise unwritable(file.file, file.fault)

    def close(self) -> None:
        """Writes what is left, and closes the files."""
        for file in self._files:
            file.close()

    def _tell(self) -> None:
        lacking = [file for file in self._files if file.fault is not None]
        if bool(lacking) == self._told:
            return
        self._told = bool(lacking)
        for file in lacking:
            reason = "" if file.fault is None else file.fault.strerror
            self._say(f"{file.file} cannot be written ({reason}); the run goes on, and what is missing is written once there is room")
        if not lacking:
            self._say("all curves are written again")


def _forget_after(folder: Path, lines: Path, last_step: int) -> list[dict[str, Any]]:
    """Removes what a stopped run wrote after `last_step`, and all that is written once, at the very end. Returns what is left in `lines`.

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
        return [line for line in lines if json.loads(line)["step"] <= last_step]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{file} is not as it was written: each line is an object with a step; {MEND}") from None


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
    return event.step <= last_step and bool(tags) and not any(tag.startswith(WRITTEN_LAST) for tag in tags)


def _run_rates(values: dict[str, Any]) -> list[float]:
    rates: list[float] = []
    while (name := f"layers/run_rate_{len(rates)}") in values:
        rates.append(values[name])
    return rates
