"""Compiled decisions without compiling them, which takes long: what was recorded of each is run as it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import rl_skip.core.compiled_decision as compiled_decision

__all__ = ["record"]


def record(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """From now on functions are recorded and not compiled. Returns those that are."""
    made: list[ExportedProgram] = []

    def keep(program: ExportedProgram, device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
        made.append(program)
        return _runner(program)

    monkeypatch.setattr(compiled_decision, "_compiled", keep)
    return made


def _runner(program: ExportedProgram) -> Callable[[list[Tensor]], list[Tensor]]:
    module, there = program.module(), program.graph_signature.user_inputs
    given = len(program.call_spec.in_spec.child(0).children()[2].children())  # type: ignore[union-attr]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        left = iter(tensors)
        layer, *others = (None if name is None else next(left) for name in there)
        return module(layer, others[: len(others) - given], others[len(others) - given :])

    return run
