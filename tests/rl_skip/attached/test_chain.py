"""Models that do no more after their layers than to call modules in turn answer by these alone, and just as they would."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.attached.chain import ChainTrace
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.core.features import CONFIDENCES
from rl_skip.core.forward import routed_forward
from tests.rl_skip.huggingface_models import DEPTH, WIDTH, batch, build

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
    model.bert.embeddings.register_forward_pre_hook(lambda *_: calls.append("model"))
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
    assert traced(("pooler", (hidden,), {}, pooled), ("head", (pooled + 0,), {}, logits)) is None  # something was done to it
    assert traced(("pooler", (hidden,), {"mask": None}, pooled), ("head", (pooled,), {}, logits)) is None
    assert traced(("head", (hidden,), {}, pooled)) is None  # and to the logits
    assert traced() is None


class _Forgetful(dict):  # type: ignore[type-arg]
    def __setitem__(self, key: object, value: object) -> None:
        pass


@pytest.mark.parametrize(("family", "plan"), [("bert", None), ("bert", {"rank": 3}), ("gpt2", {"rank": 3})])
def test_an_attached_policy_looks_by_the_modules_alone(family: str, plan: dict[str, int] | None) -> None:
    """It sees, and the rows are answered, as where the model is called for each look, with a mask and without."""
    model = build(family).eval()
    inputs = {name: tensor for name, tensor in batch(model).items() if name in ("input_ids", "attention_mask")}
    readouts = HuggingFaceStack(model).add_readouts(inputs, plan=plan)
    for weight in readouts.parameters():
        nn.init.normal_(weight, std=0.3)
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    torch.manual_seed(1)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    stack, seen = handle.stack, list[torch.Tensor]()
    policy.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))

    def calls(given: dict[str, torch.Tensor]) -> tuple[int, torch.Tensor, torch.Tensor]:
        """How often the model was called, what it said, and what the policy saw."""
        count, whole = [0], stack._whole.original  # type: ignore[union-attr]

        def counted(*args: object, **kwargs: object) -> object:
            count[0] += 1
            return whole(*args, **kwargs)

        seen.clear()
        stack._whole.original = counted  # type: ignore[union-attr]
        try:
            with torch.no_grad():
                logits = model(**given).logits
        finally:
            stack._whole.original = whole  # type: ignore[union-attr]
        return count[0], logits, torch.cat(seen)

    kinds = inputs, {"input_ids": inputs["input_ids"]}
    _ = [calls(given) for given in kinds]  # the first looks find the chain
    by_chain = [calls(given) for given in kinds]
    stack._chains = _Forgetful()  # type: ignore[union-attr]
    for given, (count, logits, observations) in zip(kinds, by_chain, strict=True):
        many, expected, as_seen = calls(given)
        assert count == 1 < many
        assert logits.equal(expected) and observations.equal(as_seen)


def test_where_there_always_are_as_many_tokens_a_view_of_all_is_the_tensor_and_one_that_was_written_to_is_not() -> None:
    def traced(between: Callable[[torch.Tensor], torch.Tensor], views: bool = True) -> tuple[str, ...] | None:
        hidden, pooled, logits = torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 2)
        trace = ChainTrace(hidden, views)
        trace.called("pooler", (hidden,), {}, pooled)
        trace.called("head", (between(pooled),), {}, logits)
        return trace.names(logits)

    assert traced(lambda pooled: pooled[:, 0:]) == ("pooler", "head")
    assert traced(lambda pooled: pooled[:, 0:], views=False) is None
    for changed in (lambda pooled: pooled[:, :2], lambda pooled: pooled.mul_(2), lambda pooled: pooled.clone(), lambda pooled: pooled[1:]):
        assert traced(changed) is None


class _MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.mean(dim=1) @ self.weight


class _FirstTokens(nn.Module):
    """Answers from the first four tokens, which of short inputs are all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(DEPTH)), _MeanHead()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, :4])


def test_what_was_seen_on_short_inputs_is_not_taken_for_what_happens_to_long_ones() -> None:
    short, long = torch.randn(6, 4, WIDTH), 5 * torch.randn(6, 9, WIDTH)
    seen = []
    for chains in ({}, _Forgetful()):
        model = _FirstTokens().eval()
        torch.manual_seed(1)
        handle = rl_skip.attach(model, rl_skip.SkipConfig(), layers="layers", example=short)
        assert handle.policy is not None
        handle.stack._chains = chains  # type: ignore[union-attr]
        looks = list[torch.Tensor]()
        with torch.no_grad():
            model(short)
            handle.policy.register_forward_pre_hook(lambda _module, args, looks=looks: looks.append(args[0]))
            model(long)
        seen.append(torch.cat(looks))
    torch.testing.assert_close(*seen)
