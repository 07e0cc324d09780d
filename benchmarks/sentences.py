"""The lines of `speed.py` on a model from transformers: sentences through the bare model, the routed forward, and the model with a policy attached.

The policy is one of random weights, whose bias is set such that the rows leave at the mean compute that is asked for. It looks, decides and is
charged as a trained one.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.turns import in_turns
from benchmarks.updates import plain_forward
from rl_skip import JumpPolicy, JumpRules, ObservationLayout, attach
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.pretrained import load_model
from rl_skip.core.features import default_features
from rl_skip.core.inputs import Inputs, trimmed
from rl_skip.core.task import Examples
from rl_skip.export.policy_folder import SkipModel
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions

__all__ = ["sentence_lines"]

BARE, ROUTED, COMPILED, ATTACHED = "bare model", "routed forward", "routed forward, policy compiled", "policy attached"
STEPS = 24
"""Halvings of the interval in which the policy's bias is looked for."""


def random_policy(stack: HuggingFaceStack, spread: float = 10.0) -> JumpPolicy:
    """A policy that leaves after layers that differ from row to row; `spread` scales its logits."""
    assert stack.readouts is not None
    features = default_features(False, has_readouts=True)
    layout = ObservationLayout(stack.width, stack.depth, features=features, readout_flops=stack.readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False)).eval()
    nn.init.normal_(policy.fc_out.weight, std=spread)
    return policy


def mean_compute(model: SkipModel, batches: Sequence[Inputs]) -> float:
    """Over all rows."""
    computes = []
    for batch in batches:
        model(batch)
        assert model.last is not None
        computes.append(model.last.compute)
    return float(torch.cat(computes).mean())


def set_compute(model: SkipModel, batches: Sequence[Inputs], compute: float) -> None:
    """Sets the bias of going on such that the mean compute is about `compute`."""
    bias, low, high = model.policy.fc_out.bias.data, -1e3, 1e3
    for _ in range(STEPS):
        bias[0] = (low + high) / 2
        low, high = (float(bias[0]), high) if mean_compute(model, batches) < compute else (low, float(bias[0]))


def check_routes(model: SkipModel, other: Callable[[Inputs], Tensor], batches: Sequence[Inputs]) -> None:
    """Raises `AssertionError` if the model with a policy attached takes other routes, so that its time is that of other work."""
    for batch in batches:
        model(batch)
        assert model.last is not None and torch.equal(model.last.route, other(batch))


def batches_of(test: Examples, rows: int, size: int) -> list[Inputs]:
    """The first `rows` test rows as they come, in batches padded to their longest."""
    return [trimmed(test.take(slice(start, start + size)).inputs) for start in range(0, rows, size)]


@torch.no_grad()
def sentence_lines(options: argparse.Namespace) -> None:
    """Prints the table."""
    torch.manual_seed(0)
    task = load_task("text", options.data, TaskOptions(model=options.model))
    test = task.load("test")
    stack = load_model(options.model, task.classes).eval()
    stack.add_readouts(test.take(slice(0, 4)).inputs)
    model = SkipModel(stack, random_policy(stack), price=0.1).eval()
    attached = load_model(options.model, task.classes).eval()
    bare = load_model(options.model, task.classes).eval()
    attached.model.load_state_dict(stack.model.state_dict())  # the head, which is drawn anew by each loading
    handle = attach(attached.model, model.policy, readouts=stack.readouts)
    handle.price = model.price
    compiled = None
    if options.compile:
        compiled = SkipModel(stack, copy.deepcopy(model.policy), price=model.price).eval()
        compiled.compile()
    print("\n| rows in a batch | threads | compute | way | ms per row | over the bare model (quartiles) |")
    print("| ---: | ---: | ---: | --- | ---: | ---: |")
    for budget in options.budgets:
        set_compute(model, batches_of(test, 256, 64), budget)
        if compiled is not None:
            compiled.policy.load_state_dict(model.policy.state_dict())
        for size in options.sentence_batches:
            rows = max(options.sentences, size)
            batches = batches_of(test, rows, size)
            compute = mean_compute(model, batches)
            check_routes(model, lambda batch: attached.model(**batch) and handle.last_routes, batches)
            ways = {
                BARE: partial(_all, partial(plain_forward, bare), batches),
                ROUTED: partial(_all, model, batches),
                **({} if compiled is None else {COMPILED: partial(_all, compiled, batches)}),
                ATTACHED: partial(_all, lambda batch: attached.model(**batch), batches),
            }
            for threads in options.threads:
                for name, taken in in_turns(ways, threads, options.rounds, options.seconds, options.clock).items():
                    print(f"| {size} | {threads} | {compute:.3f} | {name} | {taken.milliseconds / rows:.2f} | {taken} |", flush=True)


@torch.no_grad()
def _all(call: object, batches: Sequence[Inputs]) -> None:
    for batch in batches:
        call(batch)  # type: ignore[operator]
