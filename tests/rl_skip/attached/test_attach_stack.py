"""A model from transformers as a stack: the routed forward pass gives what the attached model gives, and costs are those that PyTorch counts."""

import inspect

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from envs.episodes import Episodes
from rl_skip import HuggingFaceStack, JumpRules, ObservationLayout
from rl_skip.core.beside import routed_beside_full
from rl_skip.core.costs import count_flops, counting
from rl_skip.core.forward import routed_forward
from rl_skip.core.routing import Decision, RoutingState
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import CASES, DEPTH, FAMILIES, WIDTH, batch, build

transformers = pytest.importorskip("transformers")
ROUTES = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_routed_forward_gives_what_the_attached_model_gives(family: str) -> None:
    model = build(family)
    inputs = batch(model)
    options = {"use_cache": False} if model.can_generate() else {}
    handle = rl_skip.attach(model)
    with torch.no_grad():
        with handle.forced(ROUTES):
            routed = model(**inputs, **options).logits
        bare = model(**inputs, **options).logits
        handle.detach()
        names = list(model.state_dict())
        stack = HuggingFaceStack(model)
        rollout = routed_forward(stack, ROUTES, inputs)
        torch.testing.assert_close(rollout.outputs, routed, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(rollout.compute, ROUTES.sum(dim=1) / DEPTH)
        torch.testing.assert_close(routed_forward(stack, torch.ones(DEPTH), inputs).outputs, bare, atol=1e-6, rtol=1e-6)
        assert model(**inputs, **options).logits.equal(bare)
    assert list(model.state_dict()) == names and not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_routes_have_in_common_runs_once(family: str) -> None:
    model = build(family)
    stack, inputs, routes = HuggingFaceStack(model), batch(model), torch.cat([ROUTES, ROUTES.flip(0)])
    with torch.no_grad():
        expected = [routed_forward(stack, route, inputs).outputs for route in (ROUTES, torch.ones(DEPTH))]
        for one, other in zip(routed_beside_full(stack, ROUTES, inputs), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        copied = routed_forward(stack, routes, inputs, copies=2)
        given = routed_forward(stack, routes, {name: x.repeat_interleave(2, dim=0) for name, x in inputs.items()})
        torch.testing.assert_close(copied.outputs, given.outputs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(copied.compute, given.compute)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_is_called_as_its_model_calls_it(family: str) -> None:
    model = build(family)
    inputs, stack = batch(model), HuggingFaceStack(model)
    given: list[dict[str, object]] = []

    def watch(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given.append(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    with torch.no_grad():
        calls = stack.begin(inputs).calls
        hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in stack.routed]
        stack._call(inputs)
        for hook in hooks:
            hook.remove()
    for i, expected in enumerate(given):
        hidden, kwargs = list(expected)[1], expected.pop("kwargs", {})
        found = calls[i].arguments
        assert found.keys() == {*expected, *kwargs} - {"self", hidden}  # type: ignore[misc]
        for name, value in {**expected, **kwargs}.items():  # type: ignore[dict-item]
            if isinstance(value, Tensor) and name not in (hidden, "position_bias"):  # which the layer before makes of the one that it is given
                torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert family != "bert" or len({id(call.arguments) for call in calls.values()}) == 1
    assert family not in ("modernbert", "gemma2") or len({id(call.arguments) for call in calls.values()}) > 1  # near and far attention


@pytest.mark.parametrize("scope", ["state", "input"])
def test_a_policy_decides_the_same_in_a_routed_forward_and_attached(scope: str) -> None:
    policy, model = make_policy(7, scope=scope), build("bert")
    inputs = batch(model)
    with torch.no_grad():
        rollout = routed_forward(HuggingFaceStack(model), policy, inputs, price=0.3)
        handle = rl_skip.attach(model, policy)
        handle.price = 0.3
        outputs = model(**inputs).logits
    assert len(rollout.route.unique(dim=0)) > 1
    assert handle.last_routes.equal(rollout.route)
    torch.testing.assert_close(handle.last_compute, rollout.compute)
    torch.testing.assert_close(outputs, rollout.outputs, atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_the_attached_model() -> None:
    labels, gradients = torch.tensor([0, 1, 1, 0]), []
    for attached in (True, False):
        model = build("bert")
        inputs = batch(model)
        if attached:
            with rl_skip.attach(model).forced(ROUTES):
                logits = model(**inputs).logits
        else:
            logits = routed_forward(HuggingFaceStack(model), ROUTES, inputs).outputs
        nn.functional.cross_entropy(logits, labels).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "gpt2"])
def test_costs_are_those_that_pytorch_counts(family: str) -> None:
    model = build(family, attn_implementation="sdpa")
    stack = HuggingFaceStack(model)
    inputs = batch(model)
    carry = stack.begin(inputs)
    for b in range(len(ROUTES)):
        real = inputs["attention_mask"][b].bool() if "attention_mask" in inputs else slice(None)
        row = {name: x[b : b + 1] if name == "pixel_values" else x[b : b + 1, real] for name, x in inputs.items()}
        one = stack.begin(row)
        with counting(model):
            counted = count_flops(lambda one=one: stack.run(0, one, None))
        assert carry.full_flops[b].item() == pytest.approx(DEPTH * counted)


@pytest.mark.parametrize("family", ["bert", "llama", "wav2vec2", "t5"])
def test_new_rows_take_the_place_of_others_in_mid_route(family: str) -> None:
    model = build(family)
    stack = HuggingFaceStack(model)
    inputs = batch(model)
    whole = {name: torch.ones_like(x) if name == "attention_mask" else x for name, x in inputs.items()}  # without padding
    whole = {name: x.clamp(min=3) if name == "input_ids" else x for name, x in whole.items()}
    rows, rules = torch.tensor([1, 3]), JumpRules.reaching(ObservationLayout(stack.width, DEPTH))
    for first, second in ((inputs, whole), (whole, inputs)):  # masks are left out where nothing is padding
        both = {name: x.index_copy(0, rows, second[name][rows]) for name, x in first.items()}
        with torch.no_grad():
            state = Episodes(stack, rules, first, torch.zeros(len(ROUTES)))
            for i in (0, 2):
                everyone = state.visit(i)
                state.follow(everyone, Decision(torch.full_like(everyone, i + 2)))
            state.begin(rows.numpy(), {name: x[rows] for name, x in second.items()}, torch.zeros(2))
            state.follow(rows, Decision(torch.ones_like(rows)))
            for i in range(1, DEPTH):
                arrived = state.visit(i)
                state.follow(arrived, Decision(torch.full_like(arrived, i + 1)))
            state.note()
            route = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)[[0, 1, 0, 1]]
            expected = routed_forward(stack, route, both)
            assert state.route.equal(route)
            torch.testing.assert_close(stack.finish(state.carry), expected.outputs, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(stack.finish(state.carry.take(rows)), expected.outputs[rows], atol=1e-5, rtol=1e-5)


def test_what_comes_before_the_layers_runs_once() -> None:
    model = build("wav2vec2")
    calls: list[Tensor] = []
    model.wav2vec2.feature_extractor.conv_layers[0].conv.register_forward_hook(lambda _module, _args, output: calls.append(output))
    routed_forward(HuggingFaceStack(model), ROUTES, batch(model))
    assert len(calls) == 1


def test_a_backbone_gets_a_head() -> None:
    model, head = build("bert").bert, nn.Linear(WIDTH, 3)
    inputs = batch(model)
    with torch.no_grad():
        outputs = routed_forward(HuggingFaceStack(model, head=head), torch.ones(DEPTH), inputs).outputs
        for b, mask in enumerate(inputs["attention_mask"].bool()):
            state = model(input_ids=inputs["input_ids"][b : b + 1, mask]).last_hidden_state
            torch.testing.assert_close(outputs[b], head(state.mean(dim=1))[0], atol=1e-5, rtol=1e-5)
        with pytest.raises(rl_skip.UserError, match="BertModel returns no logits: give the stack a head"):
            routed_forward(HuggingFaceStack(model), torch.ones(DEPTH), inputs)


def test_the_policy_of_a_causal_stack_does_not_see_beyond_the_prompt() -> None:
    stack = HuggingFaceStack(build("llama"), prompt_tokens=3)
    inputs = {"input_ids": torch.randint(3, 60, (4, 9))}
    changed = {"input_ids": torch.cat([inputs["input_ids"][:, :3], torch.randint(3, 60, (4, 6))], dim=1)}
    rules, everyone = make_policy(scope="input").rules, torch.arange(4)
    looks = [RoutingState(stack, rules, x, 0.1).observe(everyone) for x in (inputs, changed)]
    torch.testing.assert_close(looks[0], looks[1])
    stack.prompt_tokens = 4
    assert not torch.allclose(RoutingState(stack, rules, changed, 0.1).observe(everyone), looks[0])


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_padding_is_known_from_the_masks_of_the_layers(family: str, attention: str) -> None:
    model = build(family, attn_implementation=attention)
    inputs = batch(model)
    carry = HuggingFaceStack(model).begin(inputs)
    if "input_values" in inputs:
        frames = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(dim=1))
        assert carry.mask.equal(torch.arange(carry.hidden.shape[1]) < frames.unsqueeze(1))
    elif "attention_mask" in inputs:
        assert carry.mask.equal(inputs["attention_mask"].bool())
    else:
        assert carry.mask is None


def test_rows_part_while_the_model_learns_after_all_of_them_were_measured_together() -> None:
    model = build("bert").eval()
    stack, inputs = HuggingFaceStack(model), batch(model)
    stack.add_readouts(inputs, plan={"rank": 3})
    B = len(inputs["attention_mask"])
    route = torch.ones(B, DEPTH, dtype=torch.bool)
    for row in range(B):
        route[row, 1 + row % DEPTH :] = False
    with torch.no_grad():
        expected = routed_forward(stack, route, inputs).outputs
        fresh = HuggingFaceStack(model)
        fresh.readouts = stack.readouts
        routed_forward(fresh, torch.ones(DEPTH, dtype=torch.bool), inputs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    fresh.train()
    torch.testing.assert_close(routed_forward(fresh, route, inputs).outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_positions_may_be_those_of_all_rows_or_of_each(family: str) -> None:
    model = build(family)
    stack, ids = HuggingFaceStack(model), torch.randint(3, 60, (4, 5))
    route = torch.ones(4, DEPTH, dtype=torch.bool)
    route[0, 1:3] = route[2, 2] = False
    for positions in (None, torch.arange(2, 7).expand(4, 5), torch.arange(2, 7).unsqueeze(0), None):
        inputs = {"input_ids": ids} if positions is None else {"input_ids": ids, "position_ids": positions}
        with torch.no_grad():
            outputs = routed_forward(stack, route, inputs).outputs
            for row in range(4):
                one = {name: values[row : row + 1] if len(values) == 4 else values for name, values in inputs.items()}
                alone = routed_forward(stack, route[row : row + 1], one).outputs
                torch.testing.assert_close(outputs[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_head_that_takes_the_place_of_another_answers() -> None:
    model = build("bert").eval()
    stack, inputs = HuggingFaceStack(model), batch(model)
    everything = torch.ones(DEPTH, dtype=torch.bool)
    with torch.no_grad():
        before = routed_forward(stack, everything, inputs).outputs
        model.classifier = nn.Linear(WIDTH, model.classifier.out_features)
        after = routed_forward(stack, everything, inputs).outputs
        torch.testing.assert_close(after, model(**inputs).logits, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after, before)
