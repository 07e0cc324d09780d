"""Confidence exits: a row leaves after the first layer whose head is sure, and is computed no further."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from agents.baselines.exits import ConfidenceExits, Exits
from agents.options.config import ScheduleConfig
from agents.run.warmup import warm_up_for
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import take_rows
from rl_skip.core.readouts import Readouts
from rl_skip.core.stack import LayerStack
from tests.agents.baseline_stacks import CLASSES, DEPTH, KINDS, ROWS, WIDTH, Calls, alone, build

HEAD = 2 * WIDTH * CLASSES


def opinionated(stack: LayerStack) -> Readouts:
    heads = stack.new_readouts()
    for k, head in enumerate(heads.each):
        head.linear.weight.data.normal_(std=1.0, generator=torch.Generator().manual_seed(k))
    heads.flops = float(HEAD)
    return heads


def entropy_by_hand(logits: Tensor) -> float:
    shares = [math.exp(one) for one in logits.tolist()]
    return -sum(share / sum(shares) * math.log(share / sum(shares)) for share in shares)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_row_leaves_after_the_first_layer_whose_head_is_sure(kind: str) -> None:
    stack, inputs = build(kind)
    heads, left = opinionated(stack), []
    found = routed_forward(stack, ConfidenceExits(heads, 0.5), inputs)
    for row in range(ROWS):
        mine = take_rows(inputs, slice(row, row + 1))
        carry = stack.begin(mine)
        spent, outputs = 0.0, None
        for i in range(DEPTH - 1):
            spent += (stack.run(i, carry, None) + HEAD / carry.full_flops).item()
            said = heads.each[i](carry.hidden, carry.mask)
            if entropy_by_hand(said[0]) < 0.5:
                outputs = said
                break
        else:
            spent += stack.run(DEPTH - 1, carry, None).item()
            i, outputs = DEPTH - 1, alone(stack, torch.ones(DEPTH).bool(), mine)
        left.append(i)
        assert found.route[row].tolist() == [layer <= i for layer in range(DEPTH)]
        torch.testing.assert_close(found.outputs[row : row + 1], outputs, atol=1e-5, rtol=1e-5)
        assert found.compute[row].item() == pytest.approx(spent, rel=1e-5)
    assert len(set(left)) >= 3


@pytest.mark.parametrize("kind", ["blocks", "skip-layer"])
@torch.no_grad()
def test_what_has_left_is_computed_no_further(kind: str) -> None:
    stack, inputs = build(kind)
    heads, calls = opinionated(stack), Calls(stack)
    found = routed_forward(stack, ConfidenceExits(heads, 0.5), inputs)
    assert calls.rows == found.route.sum(dim=0).tolist() and ROWS == calls.rows[0] > calls.rows[1] > 0
    calls.times = [0] * DEPTH
    routed_forward(stack, ConfidenceExits(heads, math.inf), inputs)
    assert calls.times == [1, 0, 0, 0, 0]


def test_the_extremes_are_one_layer_and_all(tiny_learner) -> None:
    learner = tiny_learner(agent="exits")
    exits = Exits(learner)
    for update in range(learner.warmup_updates, learner.warmup_updates + 3):
        exits.update(update)
    exits.calibrate()
    settings = exits.settings()
    assert len(settings) > 10 and len({one.label for one in settings}) == len(settings)
    assert settings[0].label == "threshold 0" and settings[-1].label == "threshold inf"
    computes = [exits.measure(learner.validation, one).compute for one in settings]
    head = 2 * 16 * 2 / (4 * (5 * (4 * 2 * 16 * 16 + 2 * 2 * 16 * 64) + 25 * 2 * 2 * 16))
    assert computes[0] == pytest.approx(1 + 3 * head, rel=1e-5) and computes[-1] == pytest.approx(0.25 + head, rel=1e-5)
    assert computes == sorted(computes, reverse=True)
    steps = sorted(set(computes))
    assert max(after - before for before, after in zip(steps, steps[1:], strict=False)) < 0.2, "thresholds lie where they make a difference"


def test_heads_begin_as_the_networks_own_and_learn_with_it(tiny_learner) -> None:
    learner = tiny_learner(agent="exits")
    exits = Exits(learner)
    warm_up_for(learner).update(0)
    learner.stack.eval()
    own = {name: tensor.clone() for name, tensor in learner.stack.head.state_dict().items()}
    exits.learn = lambda loss, update: {}  # type: ignore[method-assign]
    metrics = exits.update(learner.warmup_updates)
    assert all(tensor.equal(own[name]) for head in exits.heads.each for name, tensor in head.state_dict().items())
    batch = learner.batch(learner.warmup_updates)
    hidden, losses = learner.stack.embed(batch.inputs), []
    for layer in learner.stack.layers:
        hidden = layer(hidden)
        losses.append(torch.nn.functional.cross_entropy(learner.stack.head(hidden), batch.labels))
    torch.testing.assert_close(metrics["train/supervised_loss"], sum(losses) / 4)
    exits.learn = partial(Exits.learn, exits)  # type: ignore[method-assign]
    exits.update(learner.warmup_updates + 1)
    learned = [{name: tensor.clone() for name, tensor in head.state_dict().items()} for head in exits.heads.each]
    assert not learned[0]["linear.weight"].equal(learned[1]["linear.weight"])
    assert not learner.stack.head.state_dict()["linear.weight"].equal(own["linear.weight"])


def test_where_the_network_is_frozen_the_heads_learn_alone(tiny_learner) -> None:
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, tune="frozen")
    learner = tiny_learner(agent="exits", schedule=schedule)
    exits = Exits(learner)
    before = {name: tensor.clone() for name, tensor in learner.stack.state_dict().items()}
    exits.update(learner.warmup_updates)
    assert all(tensor.equal(before[name]) for name, tensor in learner.stack.state_dict().items())
    assert all(not head.linear.weight.equal(before["head.linear.weight"]) for head in exits.heads.each)
