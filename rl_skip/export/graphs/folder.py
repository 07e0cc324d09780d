"""Folders of graphs: what is written into them, the description with the digest of each file, and the check before they are there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_replace
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs, map_inputs, take_rows, trimmed
from rl_skip.export.description import Description
from rl_skip.export.graphs.carried import moving_axes
from rl_skip.export.policy_folder import SkipModel

__all__ = [
    "TOLERANCE",
    "About",
    "checked_batches",
    "difference",
    "moving_inputs",
    "names_of",
    "numpy_inputs",
    "same_routes",
    "single_rows",
    "write_folder",
]

FORMAT_VERSION = 2
"""Which `run_pack.py` must read."""
TOLERANCE = 1e-4
CHECKED_ROWS, CHECKED_ALONE = 33, 9


@dataclass(frozen=True)
class About:
    """What every description says."""

    policy: Description
    """Of the policy, as exported."""
    classes: Sequence[str]
    """Their names, in the order of the answers."""
    beside: Sequence[Path] = ()
    """Files that are to lie in the folder too, such as a tokenizer."""


def names_of(inputs: Inputs) -> list[str]:
    """The names of a network's inputs."""
    return ["inputs"] if isinstance(inputs, Tensor) else list(inputs)


def numpy_inputs(inputs: Inputs) -> dict[str, Any]:
    """The arrays of a batch by the names of a network's inputs."""
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    return {name: tensor.numpy() for name, tensor in zip(names_of(inputs), tensors, strict=True)}


def moving_inputs(first: Inputs, second: Inputs) -> Any:
    """Which axes of each input differ between two probes, in the form of the inputs."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        return moving_axes(first, second)
    return {name: moving_axes(tensor, second[name]) for name, tensor in first.items()}


def checked_batches(inputs: Inputs) -> list[Inputs]:
    """Batches on which graphs must answer as the network does: one row, and many of different lengths."""
    return [trimmed(take_rows(inputs, slice(0, rows))) for rows in (1, CHECKED_ROWS)]


def single_rows(inputs: Inputs) -> list[Inputs]:
    """Batches of one row, on which a graph for one row must answer as the network does."""
    return [trimmed(take_rows(inputs, slice(n, n + 1))) for n in range(CHECKED_ALONE)]


def difference(what: str, answers: Any, expected: Tensor) -> float:
    """By how much a graph's answers differ at most from the network's.

    Raises:
        UserError: if that is more than rounding explains.
    """
    largest = float((torch.as_tensor(answers) - expected).abs().max())
    if not largest <= TOLERANCE:
        raise UserError(f"the answers of {what} differ by {largest:.2g} from the network's, more than {TOLERANCE:g}, so it is not written")
    return largest


def same_routes(model: SkipModel, run: Callable[[dict[str, Any], float], tuple[Any, Any]], batches: Sequence[Inputs]) -> float:
    """By how much answers differ at most from the network's, at its operating price and at the ends of its table.

    Args:
        run: arrays by name and a price → answers (B, ...) and routes (B, L).

    Raises:
        UserError: if they differ by more than rounding explains, or a row takes another route.
    """
    largest = 0.0
    ends = (*model.table.points[:1], *model.table.points[-1:])
    for price in sorted({model.price, *(point.price for point in ends)}):
        for rows in batches:
            with torch.no_grad():
                rollout = routed_forward(model.stack, model.policy, rows, price=price)
            answers, routes = run(numpy_inputs(rows), price)
            if not torch.equal(torch.as_tensor(routes), rollout.route):
                raise UserError(f"at a price of {price:g} the graphs send rows other ways than the network does, so they are not written")
            largest = max(largest, difference("the graphs", answers, rollout.outputs))
    return largest


def write_folder(
    folder: Path, name: str, files: Mapping[str, bytes | Path], inputs: Inputs, about: About, more: Mapping[str, Any], check: Callable[[Path], float]
) -> dict[str, Any]:
    """Writes a folder of graphs, all of it or nothing.

    Args:
        folder: what to make; it must not exist.
        name: that of the description.
        files: their contents, or files that are copied.
        inputs: of the network, a few rows.
        about: what every description says.
        more: what this one says besides.
        check: given the folder before it is in its place, by how much answers differ at most from the network's.

    Returns:
        The folder, its files, and that difference.

    Raises:
        UserError: if the folder exists, or the check fails.
    """
    differences: list[float] = []

    def fill(new: Path) -> None:
        for file, content in {**files, **{path.name: path for path in about.beside}}.items():
            if isinstance(content, Path):
                shutil.copyfile(content, new / file)
            else:
                (new / file).write_bytes(content)
        described = {
            "format_version": FORMAT_VERSION,
            "inputs": {name: str(array.dtype) for name, array in numpy_inputs(map_inputs(inputs, torch.Tensor.cpu)).items()},
            "classes": list(about.classes),
            **more,
            "policy": about.policy.to_json(),
            "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(new.iterdir())},
        }
        (new / name).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            differences.append(check(new))
        except UserError:
            raise
        except Exception as error:  # a runtime's own, of which it has many
            raise UserError(f"the graphs were made, and cannot be run, so they are not written: {' '.join(str(error).split())[:300]}") from error

    atomic_replace(folder, fill)
    return {"folder": str(folder), "files": sorted(file.name for file in folder.iterdir()), "largest_difference": differences[0]}
