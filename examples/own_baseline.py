"""A baseline of one's own, leave when two heads agree: `python -m rl_skip compare RUN --baseline examples/own_baseline.py:two_heads`."""

import torch
from torch import Tensor, nn

from rl_skip import BaselineRecord, Bench, Decision, MeasuredBaseline, Router, RoutingState, View, hidden_states


class TwoAgree(Router):
    """From layer `first` on, a row leaves when the head after a layer answers as the head before it; the rest are answered by the network."""

    def __init__(self, heads: nn.ModuleList, first: int) -> None:
        self.heads, self.first = heads, first

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i == len(self.heads):
            return Decision(torch.full_like(rows, i + 1))
        logits = self.heads[i](View(state, rows).hidden)  # (R, C)
        answer = 1 + logits.argmax(dim=1, keepdim=True)  # 0: there was no head before
        agree = (answer == state.previous("answer", rows, answer)).squeeze(1) & (i >= self.first)
        return Decision(torch.where(agree, state.stack.depth, i + 1), 2.0 * logits.shape[1] * state.stack.width, "readout", answers=logits)


def measure(bench: Bench) -> dict[str, Router]:
    """Trains a small head after each layer but the last on what the layers make of the training rows, and lets rows leave from each layer on."""
    stack, train = bench.stack, bench.task.load("train")
    states = hidden_states(stack, train)  # (N, L, D)
    heads = nn.ModuleList(nn.Linear(stack.width, len(bench.task.classes)) for _ in range(stack.depth - 1))
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
    for _ in range(300):
        loss = torch.stack([bench.task.loss(head(states[:, i]), train.labels).mean() for i, head in enumerate(heads)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {f"from layer {first}": TwoAgree(heads.to(stack.layer_flops.device), first) for first in range(1, stack.depth)}


two_heads = MeasuredBaseline(BaselineRecord("two-heads", "two heads agree", advice="leave when two heads agree"), measure)
