"""Models that do no more after their layers than to call modules in turn answer by these alone, and just as they would."""

import pytest
import torch
from torch import nn

from rl_skip.attached.chain import ChainTrace
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.core.forward import routed_forward
from tests.rl_skip.huggingface_models import DEPTH, batch, build

pytest.importorskip("transformers")


def answers(stack: HuggingFaceStack, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What each exit says, all rows and one."""
    with torch.no_grad():
        routes = [torch.arange(DEPTH) <= i for i in range(DEPTH)]
        routes.append(torch.stack([torch.arange(DEPTH) <= b % DEPTH for b in range(len(inputs["input_ids"]))]))  # type: ignore[arg-type]
        return [routed_forward(stack, route, inputs).outputs for route in routes]


def test_the_modules_alone_say_what_the_model_says() -> None:
    model = build("bert").eval()
    stack, inputs = HuggingFaceStack(model), batch(model)
    stack.add_readouts(inputs)
    for weight in stack.readouts.parameters():  # type: ignore[union-attr]
        nn.init.normal_(weight, std=0.3)
    alone = answers(stack, inputs)
    assert stack._chains[False] is not None
    calls: list[str] = []
    model.register_forward_pre_hook(lambda *_: calls.append("model"))
    again = answers(stack, inputs)
    assert len(calls) == len(again)  # to reach the layers, and not once to answer
    stack._chains.clear()
    stack._along_chain = lambda *_: None  # type: ignore[method-assign]
    for by_chain, first, by_model in zip(again, alone, answers(stack, inputs), strict=True):
        assert by_chain.equal(by_model) and first.equal(by_model)


def test_whatever_lies_between_the_modules_breaks_the_chain() -> None:
    hidden, pooled, logits = torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 2)

    def traced(*calls: tuple[str, tuple[object, ...], dict[str, object], object]) -> tuple[str, ...] | None:
        trace = ChainTrace(hidden)
        for call in calls:
            trace.called(*call)
        return trace.names(logits)

    assert traced(("pooler", (hidden,), {}, pooled), ("head", (pooled,), {}, logits)) == ("pooler", "head")
    assert traced(("pooler", (hidden,), {}, pooled), ("head", (pooled[:],), {}, logits)) is None  # something was done to it
    assert traced(("pooler", (hidden,), {"mask": None}, pooled), ("head", (pooled,), {}, logits)) is None
    assert traced(("head", (hidden,), {}, pooled)) is None  # and to the logits
    assert traced() is None
