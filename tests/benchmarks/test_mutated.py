"""The benchmark of mutated files finds what it is for, and nothing in an export."""

import io
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import benchmarks.mutated
from benchmarks.mutated import FAULTS, Target, attempt, digest_of
from benchmarks.mutations import any_bytes, in_json, in_state, in_tensors
from rl_skip import load
from rl_skip.core.errors import UserError
from rl_skip.core.seal import seal


def read_export(folder: Path) -> object:
    model = load(folder)
    return model, model.price, model.table


def outcomes(target: Target, place: Path, count: int) -> list[str]:
    whole = digest_of(target.read(target.folder))
    return [attempt(target, number, 0, place, whole)[1] for number in range(count)]


@pytest.mark.parametrize(("file", "mutate"), [("policy.json", in_json), ("policy.safetensors", in_tensors)])
def test_an_export_has_no_faults(file: str, mutate: Any, finished_run: Any, tmp_path: Path) -> None:
    target = Target(file, finished_run.folder / "policy", file, read_export, (any_bytes, mutate), seal)
    found = outcomes(target, tmp_path, 40)
    assert not {*found} & {*FAULTS} and "refused" in found
    assert list(tmp_path.iterdir()) == []


def bytes_of(folder: Path) -> bytes:
    return (folder / "file").read_bytes()


def first_line(folder: Path) -> str:
    return bytes_of(folder).decode().splitlines()[0]


def refusing(folder: Path) -> bytes:
    if bytes_of(folder) != b"some content\n":
        raise UserError("not as it was written")
    return bytes_of(folder)


def slow(folder: Path) -> bytes:
    time.sleep(0.2)
    return bytes_of(folder)


def greedy(folder: Path) -> bytes:
    torch.ones(2**26)
    return bytes_of(folder)


@pytest.mark.parametrize(
    ("read", "kinds"),
    [(bytes_of, {"changed", "same"}), (first_line, {"traceback", "changed", "same"}), (refusing, {"refused", "same"})],
)
def test_each_outcome_is_told(read: Any, kinds: set[str], tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "file").write_bytes(b"some content\n")
    target = Target("file", folder, "file", read, (any_bytes,), checksum=True)
    found = {*outcomes(target, tmp_path, 60)}
    assert found <= kinds and found - {"same"} == kinds - {"same"}
    if read is bytes_of:  # without a checksum, it is another file
        assert {*outcomes(target._replace(checksum=False), tmp_path, 60)} <= {"other", "same"}


@pytest.mark.parametrize(("read", "kind"), [(slow, "hang"), (greedy, "memory")])
def test_what_takes_too_much_is_told(read: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"some content\n")
    monkeypatch.setattr(benchmarks.mutated, "SECONDS", 0.1 if kind == "hang" else 60)
    monkeypatch.setattr(benchmarks.mutated, "BYTES", 2**26)
    assert benchmarks.mutated.outcome(Target("file", tmp_path, "file", read, ()), tmp_path, False, "")[0] == kind


def test_a_state_that_is_mutated_is_still_one_that_can_be_read() -> None:
    buffer = io.BytesIO()
    torch.save({"done": 3, "weights": {"a": torch.ones(2, 2)}, "list": [1, None]}, buffer)
    names = set()
    for number in range(30):
        mutation = in_state(buffer.getvalue(), random.Random(number))
        torch.load(io.BytesIO(mutation.content), weights_only=True)
        names.add(mutation.name)
    assert len(names) > 4
