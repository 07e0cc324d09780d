"""Modules that are replaced, and hooks that are registered, after a stack was made of a model or a policy attached to it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import HuggingFaceStack, JumpPolicy, JumpRules, ObservationLayout, UserError
from rl_skip.core.features import CONFIDENCES
from rl_skip.core.forward import routed_forward
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import DEPTH, FAMILIES, ROWS, WIDTH, batch, build

transformers = pytest.importorskip("transformers")
LAYERS = {"bert": "bert.encoder.layer", "modernbert": "model.layers", "vit": "vit.layers", "llama": "model.layers", "t5": "encoder.block"}
EVERYTHING = torch.ones(DEPTH, dtype=torch.bool)
Change = Callable[[nn.Module, nn.ModuleList], object]


def _other(module: nn.Module) -> nn.Module:
    """Another module of its kind, with other weights."""
    other = copy.deepcopy(module)
    for weight in other.parameters():
        weight.data.mul_(1.7)
    return other


def _more(_module: nn.Module, _args: object, output: object) -> object:
    """A hook that changes what a module returns."""
    if isinstance(output, Tensor):
        return output * 1.5 + 1
    if isinstance(output, tuple):
        return (output[0] * 1.5 + 1, *output[1:])
    name = "logits" if "logits" in output else "last_hidden_state"  # type: ignore[operator]
    output[name] = output[name] * 1.5 + 1  # type: ignore[index]
    return output


def _replace(i: int) -> Change:
    def change(_model: nn.Module, layers: nn.ModuleList) -> None:
        layers[i] = _other(layers[i])

    return change


def _replace_list(model: nn.Module, layers: nn.ModuleList) -> None:
    path = next(name for name, module in model.named_modules() if module is layers)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(map(_other, layers)))


def _swap(_model: nn.Module, layers: nn.ModuleList) -> None:
    layers[1], layers[3] = layers[3], layers[1]


def _replace_base(model: nn.Module, _layers: nn.ModuleList) -> None:
    setattr(model, model.base_model_prefix, _other(getattr(model, model.base_model_prefix)))


def _patch(model: nn.Module, _layers: nn.ModuleList) -> None:
    original = model.forward
    model.forward = lambda *args, **kwargs: _more(model, None, original(*args, **kwargs))


def _scaled(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * 1.5 + 1, *args[1:])


CHANGES: dict[str, Change] = {
    "first layer": _replace(0),
    "a layer": _replace(2),
    "last layer": _replace(-1),
    "list": _replace_list,
    "places": _swap,
    "hook of the model": lambda model, _: model.register_forward_hook(_more),
    "forward of the model": _patch,
    "hook of the last layer": lambda _, layers: layers[-1].register_forward_hook(_more),
    "hook before the first layer": lambda _, layers: layers[0].register_forward_pre_hook(_scaled),
    "hook before a layer": lambda _, layers: layers[2].register_forward_pre_hook(_scaled),
}


def _check_follows(family: str, change: Change, warm: bool) -> None:
    """Whether a stack answers as the model itself does after a change, and another than before."""
    model = build(family)
    stack, inputs, layers = HuggingFaceStack(model), batch(model), model.get_submodule(LAYERS[family])
    assert isinstance(layers, nn.ModuleList)
    with torch.no_grad():
        before = model(**inputs, **stack.options).logits
        for _ in range(2 * warm):  # the first shows what it calls after its layers
            routed_forward(stack, EVERYTHING, inputs)
        change(model, layers)
        expected = model(**inputs, **stack.options).logits
        for _ in range(2):
            torch.testing.assert_close(routed_forward(stack, EVERYTHING, inputs).outputs, expected, atol=1e-6, rtol=1e-5)
    assert (before - expected).abs().max() > 2e-5


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_stack_follows_its_model(change: str, warm: bool) -> None:
    for family in ("bert", "llama"):
        _check_follows(family, CHANGES[change], warm)


@pytest.mark.parametrize("family", ["modernbert", "vit", "t5"])
def test_a_stack_of_any_family_follows_a_replaced_layer_and_a_hook(family: str) -> None:
    _check_follows(family, _replace(2), True)
    _check_follows(family, CHANGES["hook before the first layer"], True)


def test_modules_on_and_beside_the_way_to_the_layers_may_be_replaced() -> None:
    def embeddings(model: nn.Module, _layers: nn.ModuleList) -> None:
        model.bert.embeddings = _other(model.bert.embeddings)

    def pooler(model: nn.Module, _layers: nn.ModuleList) -> None:
        model.bert.pooler = _other(model.bert.pooler)

    for change in (embeddings, pooler, _replace_base):
        _check_follows("bert", change, True)


def test_a_hook_sees_each_pass_once_and_the_chain_answers_again_once_it_is_removed() -> None:
    model = build("bert")
    stack, inputs, calls = HuggingFaceStack(model), batch(model), list[str]()
    with torch.no_grad():
        alone = [routed_forward(stack, EVERYTHING, inputs).outputs for _ in range(2)]
        modules = {"model": model, "base": model.bert, "pooler": model.bert.pooler, "layer": model.bert.encoder.layer[1]}
        hooks = [module.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, module in modules.items()]
        for _ in range(2):
            calls.clear()
            assert routed_forward(stack, EVERYTHING, inputs).outputs.equal(alone[1])
            assert sorted(calls) == sorted(modules)
        for hook in hooks:
            hook.remove()
        again = [routed_forward(stack, EVERYTHING, inputs).outputs for _ in range(2)]
    assert stack._chains[False] == ("bert.pooler", "dropout", "classifier")
    assert all(outputs.equal(alone[0]) for outputs in again)


def test_gradients_of_hooked_layers_are_counted_once() -> None:
    model, seen = build("bert"), list[str]()
    stack, inputs = HuggingFaceStack(model), batch(model)
    model.bert.encoder.layer[-1].register_full_backward_hook(lambda *_: seen.append("layer"))
    routed_forward(stack, EVERYTHING, inputs).outputs.sum().backward()
    assert seen == ["layer"]


def test_another_cost_of_a_replaced_layer_is_counted() -> None:
    model = build("bert")
    stack, inputs = HuggingFaceStack(model), batch(model)
    route = EVERYTHING.clone()
    route[2] = False
    narrow = copy.deepcopy(model.bert.encoder.layer[2])
    narrow.intermediate.dense, narrow.output.dense = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
    with torch.no_grad():
        before = routed_forward(stack, route, inputs).compute
        model.bert.encoder.layer[2] = narrow
        after = routed_forward(stack, route, inputs).compute
    assert torch.equal(after, routed_forward(HuggingFaceStack(model), route, inputs).compute) and (after > before).all()


def test_another_number_of_layers_is_refused() -> None:
    model = build("bert")
    stack, inputs = HuggingFaceStack(model), batch(model)
    model.bert.encoder.layer = model.bert.encoder.layer[:3]
    with pytest.raises(UserError, match="bert.encoder.layer has 3 layers, and had 5 when the stack was made: make a HuggingFaceStack"):
        routed_forward(stack, EVERYTHING, inputs)


def test_a_head_that_reads_the_states_after_all_layers_is_refused() -> None:
    _, _, config = FAMILIES["wav2vec2"]
    weighted = transformers.Wav2Vec2Config(**config, use_weighted_layer_sum=True)
    with pytest.raises(UserError, match="reads the hidden states after all layers .* keeps the last: rl_skip.attach"):
        HuggingFaceStack(transformers.Wav2Vec2ForSequenceClassification(weighted))


def test_routes_of_an_attached_model_are_not_those_of_layers_that_it_no_longer_has() -> None:
    model = build("bert")
    inputs = batch(model)
    handle = rl_skip.attach(model, make_policy(7))
    with torch.no_grad():
        model(**inputs)
        _replace_list(model, model.bert.encoder.layer)
        for layer in model.bert.encoder.layer:
            del layer.forward  # the copy of what stands there
        model(**inputs)
    for read in (lambda: handle.last_routes, lambda: handle.last_compute):
        with pytest.raises(UserError, match=r"layer 0 of bert.encoder.layer was replaced after the policy was attached: detach\(\) first"):
            read()


def test_a_layer_whose_forward_no_longer_asks_the_policy_is_refused() -> None:
    model = build("bert")
    inputs, layer = batch(model), model.bert.encoder.layer[2]
    handle = rl_skip.attach(model)
    stand_in = layer.forward
    with handle.forced(torch.tensor([True, True, False, False, True])), torch.no_grad():
        expected = model(**inputs).logits
        layer.forward = lambda *args, **kwargs: stand_in(*args, **kwargs)  # as hooks of accelerate do
        assert model(**inputs).logits.equal(expected)
        del layer.forward
        with pytest.raises(UserError, match="forward of layer 2 was replaced after the policy was attached, and no longer asks it"):
            model(**inputs)
        layer.forward = stand_in
        del model.bert.encoder.layer[-1].forward
        model(**inputs)
    with pytest.raises(UserError, match="forward of layer 4 was replaced"):
        _ = handle.last_routes


def test_no_route_is_forced_on_a_model_that_was_detached() -> None:
    handle = rl_skip.attach(build("bert"))
    handle.detach()
    with pytest.raises(UserError, match="was detached from bert.encoder.layer, so its calls take no route: attach again"), handle.forced(EVERYTHING):
        pass


def _looking(hooked: bool) -> tuple[nn.Module, dict[str, Tensor], rl_skip.HuggingFaceStack, JumpPolicy]:
    """BERT, inputs, a stack of it with copies of its head as readouts, and a policy that looks at them and leaves."""
    model = build("bert")
    if hooked:
        model.classifier.register_forward_hook(_more)
    inputs = {name: tensor for name, tensor in batch(model).items() if name in ("input_ids", "attention_mask")}
    stack = HuggingFaceStack(model)
    readouts = stack.add_readouts(inputs, plan={"modules": ["bert.pooler", "classifier"]})
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    return model, inputs, stack, JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()


def test_a_hook_of_the_head_is_called_once_around_a_readout_that_is_a_copy_of_it() -> None:
    model, inputs, stack, policy = _looking(True)
    leave = torch.arange(DEPTH) <= 2
    with torch.no_grad():
        hidden = model.bert(**inputs, output_hidden_states=True).hidden_states[3]
        expected = model.classifier(model.bert.pooler(hidden))
        torch.testing.assert_close(routed_forward(stack, leave, inputs).outputs, expected)
        with rl_skip.attach(model, policy, readouts=stack.readouts).forced(leave):
            torch.testing.assert_close(model(**inputs).logits, expected)


def test_what_a_policy_sees_follows_hooks_on_the_way_to_the_layers() -> None:
    model, inputs, stack, policy = _looking(False)
    rl_skip.attach(model, policy, readouts=stack.readouts)
    seen = list[Tensor]()
    policy.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))

    def pooled(_module: nn.Module, _args: object, output: object) -> object:
        output["pooler_output"] = output["pooler_output"] * 5  # type: ignore[index]
        return output

    with torch.no_grad():
        for hooked in (False, True):
            if hooked:
                model.bert.register_forward_hook(pooled)
            _ = [model(**inputs) for _ in range(2)]
    calls = len(seen) // 4
    alone, again, after, after_again = (torch.cat(seen[n * calls : (n + 1) * calls]) for n in range(4))
    assert alone.equal(again) and after.equal(after_again) and len(alone) >= ROWS
    assert not torch.allclose(alone[:ROWS], after[:ROWS], atol=1e-3)
