"""What was read: rows of each split and class, what was passed over, and whether it is what a run was begun with."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.files import atomic_write
from rl_skip.core.fingerprint import Fingerprint
from rl_skip.core.finite import row_not_finite
from rl_skip.core.task import Examples, Split, Task

__all__ = ["DATA", "DataReport", "SplitReport", "read_data_report", "watched"]

DATA = "data.json"
"""The report in a run folder."""
FORMAT_VERSION = 1
MOST_CLASSES = 5
"""More classes are told in brief: the smallest and the largest."""
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class SplitReport:
    """What a split holds."""

    rows: int
    classes: dict[str, int] | None
    """Rows of each class; None where rows are of no class, as in language modelling."""
    fingerprint: Fingerprint | None
    """None: the labels alone have been read."""

    @classmethod
    def of(cls, task: Task, split: Split, labels: Tensor, examples: Examples | None = None) -> "SplitReport":
        """Counts the labels, and takes the fingerprint of the rows where they are there.

        Raises:
            UserError: if a label is the number of no class, so that no loss can be computed for it.
        """
        fingerprint = None if examples is None else Fingerprint.of(examples)
        return cls(len(labels), _count(task, split, labels), fingerprint)

    def __str__(self) -> str:
        if self.classes is None:
            return f"{self.rows:,} rows"
        if len(self.classes) <= MOST_CLASSES:
            return f"{self.rows:,} rows ({', '.join(f'{name}: {count:,}' for name, count in self.classes.items())})"
        (fewest, low), *_, (most, high) = sorted(self.classes.items(), key=lambda item: item[1])
        return f"{self.rows:,} rows ({len(self.classes)} classes, from {fewest}: {low:,} to {most}: {high:,})"

    def difference(self, other: "SplitReport") -> str | None:
        """In which way another split is not this one; None where nothing is known to differ."""
        if self.rows != other.rows:
            return f"{self.rows:,} and {other.rows:,} rows"
        if self.classes != other.classes:
            return "the classes of the rows differ"
        if self.fingerprint is None or other.fingerprint is None or self.fingerprint.same_rows(other.fingerprint):
            return None
        return "the labels differ" if self.fingerprint.labels != other.fingerprint.labels else "the inputs differ"

    def to_json(self) -> dict[str, Any]:
        """As data.json holds it."""
        return {"rows": self.rows, "classes": self.classes, "fingerprint": None if self.fingerprint is None else self.fingerprint.to_json()}

    @classmethod
    def from_json(cls, fields: Fields) -> "SplitReport":
        """What `to_json` made.

        Raises:
            UserError: if a field is missing or wrong, by name.
        """
        counts = None if fields.get("classes") is None else fields.object("classes")
        classes = None if counts is None else {name: counts.integer(name, low=0) for name in counts.values}
        fingerprint = None if fields.get("fingerprint") is None else Fingerprint.from_json(fields.object("fingerprint"))
        return cls(fields.integer("rows", low=0), classes, fingerprint)


def _count(task: Task, split: Split, labels: Tensor) -> dict[str, int] | None:
    classes = task.class_of(labels)
    if len(task.classes) < 2 or classes.dim() != 1 or classes.is_floating_point():
        return None
    wrong = (classes < 0) | (classes >= len(task.classes))
    if wrong.any():
        if type(task).loss is not Task.loss:
            return None  # labels with a meaning of the task's own
        row, last = int(wrong.nonzero()[0]), len(task.classes) - 1
        found = f"the label of row {row} of the {split} data is {int(classes[row])}"
        raise UserError(f"{found}, and the classes of the task {task.name} have the numbers 0 to {last}; give it as many classes as there are labels")
    return dict(zip(task.classes, classes.bincount(minlength=len(task.classes)).tolist(), strict=True))


def watched(task: Task, seen: Callable[[Split, Examples], None]) -> Task:
    """The same task; `seen` is called when a split is loaded for the first time. What cannot be loaded is a `UserError` of one line."""
    known: set[Split] = set()

    def load(split: Split) -> Examples:
        try:
            examples = task.load(split)
        except UserError:
            raise
        except Exception as error:  # a person's own code can fail in any way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"the {split} data of the task {task.name} cannot be loaded ({reason}); mend the task, or set --data") from error
        if split not in known:
            if (fault := _fault(examples)) is not None:
                raise UserError(f"the {split} data of the task {task.name} cannot be used: {fault}; mend the task, or set --data")
            seen(split, examples)
            known.add(split)
        return examples

    return replace(task, load=load)


def _fault(examples: Examples) -> str | None:
    """Why rows cannot be used."""
    if not isinstance(examples, Examples):
        return f"load returned {type(examples).__name__}, not rl_skip.Examples"
    if not len(examples.labels):
        return "they hold no rows"
    inputs = examples.inputs if isinstance(examples.inputs, dict) else {"the input": examples.inputs}
    counts = {name: len(tensor) for name, tensor in inputs.items() if len(tensor) != len(examples.labels)}
    if counts:
        return next(f"{name} has {count} rows, and there are {len(examples.labels)} labels" for name, count in counts.items())
    faulty = ((name, row_not_finite(tensor)) for name, tensor in {**inputs, "the label": examples.labels}.items())
    return next((f"{name} of row {row} holds a number that is not finite" for name, row in faulty if row is not None), None)


class DataReport:
    """Counts the splits of a task as they are loaded, and refuses those that a run was not begun with.

    Args:
        task: whose data they are.
        begun: the folder of the run that goes on with them; None: they may be any.
        train_rows: how many training rows are drawn to train on; None: all.
    """

    def __init__(self, task: Task, begun: Path | None = None, train_rows: int | None = None) -> None:
        self._of, self._begun, self._train_rows = task, begun, train_rows
        self._known = {} if begun is None else read_data_report(begun)[0]
        self.splits: dict[Split, SplitReport] = {}
        self._remarks = list(task.remarks)
        self.task = watched(task, self._see)
        """The task, its splits counted when they are loaded."""
        if task.labels is not None:
            self._add("test", SplitReport.of(task, "test", task.labels("test")))

    def _see(self, split: Split, examples: Examples) -> None:
        if self._of.labels is not None and not torch.equal(self._of.labels(split).cpu(), examples.labels.cpu()):
            told = f"the task {self._of.name} has other {split} labels where it is asked for them alone than those that it loads"
            raise UserError(f"{told}; mend its labels, or leave them out")
        self._add(split, SplitReport.of(self._of, split, examples.labels, examples))
        if self._of.remarks_on is not None:
            self._remarks += self._of.remarks_on(split)

    def _add(self, split: Split, report: SplitReport) -> None:
        begun = self._known.get(split)
        if begun is not None and (difference := begun.difference(report)) is not None:
            told = f"the {split} data are not those that the run {self._begun} was begun with ({difference})"
            raise UserError(f"{told}; set --data to where those are, or begin a new run with --out")
        self.splits[split] = report

    @property
    def remarks(self) -> list[str]:
        """What was passed over, cut off or changed, and which classes training has few rows of; a sentence each."""
        said = [*self._remarks, *_rare(self.splits)]
        return [sentence.encode("utf-8", "backslashreplace").decode() for sentence in said]  # names of files may be in any encoding

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield f"data of the task {self._of.name}:"
        for split in SPLITS:
            told = self.splits.get(split, "counted when the training has ended, which does not read them")
            drawn = f", of which {self._train_rows:,} are drawn" if split == "train" and self._draws() else ""
            yield f"  {split:<11} {told}{drawn}"
        for remark in self.remarks:
            yield f"  - {remark}"

    def _draws(self) -> bool:
        return self._train_rows is not None and "train" in self.splits and self._train_rows < self.splits["train"].rows

    def write(self, folder: Path) -> None:
        """Writes `data.json`: what is in `splits`, and what the run had found of others when it was begun."""
        found = self._known | self.splits
        splits = {split: found[split].to_json() for split in SPLITS if split in found}
        described = {"format_version": FORMAT_VERSION, "task": self._of.name, "splits": splits, "remarks": self.remarks}
        atomic_write(folder / DATA, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def _rare(splits: dict[Split, SplitReport]) -> Iterator[str]:
    train = splits["train"].classes if "train" in splits else None
    if train is None:
        return
    for count, said in ((0, "without a training row"), (1, "with a single training row")):
        names = [name for name, rows in train.items() if rows == count]
        if names:
            more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
            yield f"classes {said}: {', '.join(names[:MOST_CLASSES])}{more}"


def read_data_report(folder: Path) -> tuple[dict[Split, SplitReport], tuple[str, ...]]:
    """What a run was begun with, and the remarks on it; nothing where its folder has no `data.json`, as those of earlier versions.

    Raises:
        UserError: if the file cannot be read, or a field is missing or wrong.
    """
    if not (folder / DATA).is_file():
        return {}, ()
    fields = Fields.read(folder / DATA, FORMAT_VERSION)
    splits = fields.object("splits")
    return {split: SplitReport.from_json(splits.object(split)) for split in SPLITS if split in splits.values}, fields.texts("remarks")
