"""What `torch.compile` comes to where routes are decided. The code that it traces imports this module, so nothing else loads the compiler."""

from typing import Any

import torch
from torch._dynamo.symbolic_convert import InstructionTranslator

from rl_skip.core.errors import UserError

__all__ = ["WholeGraphError", "eager", "refuse_whole_graph", "whole_graph"]


class WholeGraphError(UserError, AssertionError):
    """A `UserError` that is raised while the compiler traces, which hands on assertions alone as they are."""

    def __str__(self) -> str:
        return str(self.args[0]).partition("\n")[0]  # without the trace that the compiler adds


def _whole_graph() -> bool:
    return bool(InstructionTranslator.current_tx().one_graph)


def _refuse_whole_graph(sentence: str) -> None:
    if _whole_graph():
        raise WholeGraphError(sentence)


eager: Any = torch.compiler.disable
"""eager(function): the graph ends where it is called, and neither it nor what it calls is compiled."""
whole_graph: Any = torch.compiler.assume_constant_result(_whole_graph)
"""whole_graph(): whether the graph must not end before the model does: `fullgraph=True`, and `torch.export` with `strict=True`."""
refuse_whole_graph: Any = torch.compiler.assume_constant_result(_refuse_whole_graph)
"""refuse_whole_graph(sentence): raises `WholeGraphError` with that sentence where it must not."""
