"""`torch.compile` around an attached model, beside the same model without it; and graphs that are recorded as a whole."""

import copy
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import Handle, JumpPolicy, JumpRules, ObservationLayout, UserError
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.attached.test_attach_readouts import EXITS, with_readouts
from tests.rl_skip.huggingface_models import DEPTH, WIDTH, batch, build

pytest.importorskip("transformers")
ROUTES = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
ROUTE = torch.tensor([True, False, True, True, False])
EXIT = torch.tensor([True, True, True, False, False])
FAMILIES = ("bert", "gemma2", "plain")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, g++")


class Plain(nn.Module):
    """Layers in a list, and nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return {"logits": self.head(hidden)}


class Recalling(nn.Module):
    """A layer that returns a tuple, and takes a bias that is as long as the batch and has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, memory: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (memory @ hidden.transpose(1, 2) + bias).softmax(dim=-1)
        return hidden + self.linear(weights @ hidden), memory + 0.1 * hidden, weights


class Collecting(nn.Module):
    """A model whose answer shows all that its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(3, WIDTH), nn.ModuleList(Recalling() for _ in range(DEPTH)), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(x)
        memory, weights, bias = hidden.flip(1), [], torch.arange(16.0).view(4, 4)
        for block in self.blocks:
            hidden, memory, seen = block(hidden, memory, bias=bias)
            weights.append(seen.square().sum(dim=(1, 2)))
        return {"logits": self.head((hidden + memory).mean(dim=1)) + torch.stack(weights).sum(dim=0).unsqueeze(1)}


class Bent(nn.Module):
    """A layer that is not one of PyTorch's own, whose call the compiler passes over."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden).tanh()


class Graphs:
    """A backend that runs what it is given, and counts the graphs that hold a linear map of WIDTH × WIDTH, as layers alone do."""

    def __init__(self) -> None:
        self.operations: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.operations.append(sum(node.target is torch._C._nn.linear for node in graph.graph.nodes))
        return graph.forward


@pytest.fixture(autouse=True)
def _forget() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def model_of(family: str) -> tuple[nn.Module, dict[str, Any], str]:
    """A model, its inputs, and where its layers are."""
    if family == "plain":
        torch.manual_seed(0)
        return Plain().eval(), {"x": torch.randn(4, 3)}, "blocks"
    model = build(family)
    return model, batch(model) | ({"use_cache": False} if family in ("llama", "gemma2") else {}), "auto"


def attached(model: nn.Module, layers: str) -> Handle:
    handle = rl_skip.attach(model, make_policy(7), layers=layers)
    handle.price = 0.3
    return handle


def calm(model: nn.Module) -> nn.Module:
    """In training mode, without dropout, whose random numbers differ from compiler to compiler."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model.train()


def answers(call: Callable[..., Any], model: nn.Module, handle: Handle, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Logits, routes, compute and gradients of a call, under the policy and on forced routes."""
    found = {}
    for kind, routes in (("policy", None), ("forced", ROUTES)):
        model.zero_grad()
        if routes is None:
            logits = call(**inputs)["logits"]
        else:
            with handle.forced(routes):
                logits = call(**inputs)["logits"]
        found[f"{kind} logits"], found[f"{kind} routes"], found[f"{kind} compute"] = logits.detach(), handle.last_routes, handle.last_compute
        if torch.is_grad_enabled():
            logits.square().mean().backward()
            found |= {f"{kind} gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_model_answers_routes_and_learns_as_without(family: str) -> None:
    model, inputs, layers = model_of(family)
    handle, graphs = attached(calm(model), layers), Graphs()
    expected = answers(model, model, handle, inputs)
    assert len(expected["policy routes"].unique(dim=0)) > 1
    compiled = torch.compile(model, backend=graphs)
    check_equal(answers(compiled, model, handle, inputs), expected)
    assert sum(count > 0 for count in graphs.operations) >= 2  # layers were compiled, for all rows and for some
    before = len(graphs.operations)
    check_equal(answers(compiled, model, handle, inputs), expected)
    assert len(graphs.operations) == before


def test_what_layers_return_beside_the_hidden_state_and_rows_that_have_to_be_found() -> None:
    """Rows are found by extra calls of a layer, here while the model is compiled: they leave no trace."""
    torch.manual_seed(0)
    model, inputs, graphs = Collecting().train(), {"x": torch.randn(4, 4, 3)}, Graphs()
    reference = copy.deepcopy(model)
    handles = [rl_skip.attach(one, make_policy(7), layers="blocks", returns=("hidden", "memory", None)) for one in (model, reference)]
    for handle in handles:
        handle.price = 0.3
    found = answers(torch.compile(model, backend=graphs), model, handles[0], inputs)
    check_equal(found, answers(reference, reference, handles[1], inputs))
    assert graphs.operations


def test_attention_weights_are_collected() -> None:
    model, inputs, _ = model_of("bert")
    model.bert.encoder.layer, model.config.num_hidden_layers, routes = model.bert.encoder.layer[:2], 2, ROUTES[:, :2]
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    handle = rl_skip.attach(model)
    with torch.no_grad(), handle.forced(routes):
        found = torch.compile(model, backend="eager")(**inputs).attentions
        torch.testing.assert_close(found, model(**inputs).attentions)
    assert (torch.stack([weights.flatten(1).any(dim=1) for weights in found], dim=1) == routes).all()
    with handle.forced(ROUTE[:2]), pytest.raises(UserError, match="no attentions of layers that it leaves out: record it with"):
        WHOLE["export"](model, inputs)


def test_gradient_checkpointing() -> None:
    model, inputs, _ = model_of("bert")
    model = calm(model)
    handle = attached(model, "auto")
    expected = answers(model, model, handle, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    check_equal(answers(torch.compile(model, backend="eager"), model, handle, inputs), expected)


@needs_compiler
def test_inductor() -> None:
    model, inputs, layers = model_of("bert")
    handle = attached(model, layers)
    with torch.no_grad():
        check_equal(answers(torch.compile(model), model, handle, inputs), answers(model, model, handle, inputs))


@pytest.mark.parametrize(("family", "kind"), [("bert", "copies"), ("llama", "adapters")])
def test_rows_that_leave_early(family: str, kind: str) -> None:
    model, readouts, policy = with_readouts(family, kind)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    handle.price = 0.3
    inputs = model_of(family)[1]
    compiled = torch.compile(model, backend="eager")
    for route in (None, EXITS):
        if route is None:
            expected, routes, found = model(**inputs).logits, handle.last_routes, compiled(**inputs).logits
        else:
            with handle.forced(route):
                expected, routes, found = model(**inputs).logits, handle.last_routes, compiled(**inputs).logits
        torch.testing.assert_close(found, expected)
        assert handle.last_routes.equal(routes)


def _wrapped_layers(model: nn.Module, backend: Any) -> nn.Module:
    model.blocks = nn.ModuleList(torch.compile(block, backend=backend) for block in model.blocks)
    return model


def _compiled_layers(model: nn.Module, backend: Any) -> nn.Module:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


def _in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


WAYS = [lambda model, backend: torch.compile(model, backend=backend), _in_place, _compiled_layers, _wrapped_layers]


@pytest.mark.parametrize("way", WAYS, ids=["wrapped", "in place", "each layer", "each layer wrapped"])
@pytest.mark.parametrize("first", ["attach", "compile", "call"])
def test_the_order_of_compiling_and_attaching_does_not_matter(way: Callable[..., nn.Module], first: str) -> None:
    model, inputs, layers = model_of("plain")
    with torch.no_grad():
        bare = model(**inputs)["logits"]
        reference = copy.deepcopy(model)
        expected = answers(reference, reference, attached(reference, layers), inputs)
        graphs = Graphs()
        if first == "attach":
            handle = attached(model, layers)
            call = way(model, graphs)
        else:
            call = way(model, graphs)
            if first == "call":
                call(**inputs)
            handle = attached(call, layers)
        check_equal(answers(call, model, handle, inputs), expected)
        assert graphs.operations
        with handle.disabled():
            torch.testing.assert_close(call(**inputs)["logits"], bare)
        copied = copy.deepcopy(call)
        handle.detach()
        torch.testing.assert_close(call(**inputs)["logits"], bare)
        torch.testing.assert_close(copied(**inputs)["logits"], expected["policy logits"])


def test_masks_reach_layers_that_were_compiled_before() -> None:
    model, inputs, _ = model_of("bert")
    model.requires_grad_(False).classifier.requires_grad_(True)
    reference = copy.deepcopy(model)
    expected = answers(reference, reference, attached(reference, "auto"), inputs)
    model.bert.encoder.layer = nn.ModuleList(torch.compile(layer, backend="eager") for layer in model.bert.encoder.layer)
    check_equal(answers(model, model, attached(model, "auto"), inputs), expected)


def test_batches_of_any_size_and_threads_share_what_was_compiled() -> None:
    model, inputs, layers = model_of("plain")
    handle, graphs = attached(model, layers), Graphs()
    compiled = torch.compile(model, backend=graphs)
    x = torch.randn(40, 3)
    with torch.no_grad():
        for B in (4, 3, 2, 1, 7, 30):
            expected, routes = model(x[:B])["logits"], handle.last_routes
            torch.testing.assert_close(compiled(x[:B])["logits"], expected)
            assert handle.last_routes.equal(routes)
        before = len(graphs.operations)
        for B in range(5, 40, 6):
            torch.testing.assert_close(compiled(x[:B])["logits"], model(x[:B])["logits"])
    assert len(graphs.operations) == before

    def logits(row: int) -> Tensor:
        with torch.no_grad():
            return compiled(x[row : row + 1])["logits"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, range(40)))
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found), torch.cat([model(x[row : row + 1])["logits"] for row in range(40)]))


def test_nothing_is_left_of_a_call_that_failed() -> None:
    model, inputs, layers = model_of("plain")
    handle = attached(model, layers)
    compiled = torch.compile(model, backend="eager")
    expected = model(**inputs)["logits"]
    routes = handle.last_routes

    def fail(*_: object) -> None:
        raise ValueError("no memory")

    hook = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no memory"):
        compiled(**inputs)
    hook.remove()
    torch.testing.assert_close(compiled(**inputs)["logits"], expected)
    assert handle.last_routes.equal(routes)


def test_the_trainer_compiles(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    rows = [{"input_ids": torch.randint(3, 60, (6,)), "labels": n % 2} for n in range(4)]
    options = {"output_dir": tmp_path, "max_steps": 1, "per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    weights = []
    for compiles in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        model = build("bert")
        handle = rl_skip.attach(calm(model))
        trainer = transformers.Trainer(model, transformers.TrainingArguments(**options, **compiles, save_strategy="no"), train_dataset=rows)
        with handle.forced(ROUTES):
            trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        assert handle.last_routes.equal(ROUTES)
    torch.testing.assert_close(*weights)


WHOLE = {
    "fullgraph": lambda model, inputs: torch.compile(model, backend="eager", fullgraph=True),
    "export": lambda model, inputs: torch.export.export(model, (), inputs, dynamic_shapes=_any_rows(inputs), strict=False).module(),
    "strict export": lambda model, inputs: torch.export.export(model, (), inputs, dynamic_shapes=_any_rows(inputs), strict=True).module(),
    "trace": lambda model, inputs: torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False),
}


def _any_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) else None for name, value in inputs.items()}


@pytest.mark.parametrize("whole", WHOLE)
def test_a_graph_recorded_as_a_whole_holds_one_route(whole: str) -> None:
    model, inputs, layers = model_of("plain")
    handle = attached(model, layers)
    sentence = "would repeat the routes of the rows that it was recorded on: record it with one route"
    with torch.no_grad():
        with pytest.raises(UserError, match=sentence) as raised:
            WHOLE[whole](model, inputs)(**inputs)
        assert "\n" not in str(raised.value)
        with handle.forced(ROUTES), pytest.raises(UserError, match=sentence):
            WHOLE[whole](model, inputs)(**inputs)
        for context, route in ((handle.forced(ROUTE), ROUTE), (handle.disabled(), torch.ones(DEPTH).bool())):
            torch.compiler.reset()
            with context:
                recorded = WHOLE[whole](model, inputs)
                for x in (inputs["x"], torch.randn(3, 3)):  # other rows, and another number of them
                    hidden = model.embed(x)
                    for block, runs in zip(model.blocks, route.tolist(), strict=True):
                        hidden = hidden + (nn.Sequential.forward(block, hidden) if runs else hidden)
                    torch.testing.assert_close(recorded(x=x)["logits"], model.head(hidden))
    if whole == "fullgraph":
        with handle.forced(ROUTE), pytest.raises(UserError, match="no call was routed yet"):
            WHOLE[whole](model, inputs)(**inputs)
            _ = handle.last_routes


@pytest.mark.parametrize("kind", ["bert", "copies", "adapters", "pooling", "attending"])
def test_a_model_is_exported_with_one_route(kind: str) -> None:
    if kind == "bert":
        model, inputs, _ = model_of("bert")
        handle, route = attached(model, "auto"), ROUTE
    else:
        model, readouts, policy = with_readouts("bert", kind)
        handle, inputs, route = rl_skip.attach(model, policy, readouts=readouts), batch(model), EXIT
        with pytest.raises(UserError, match="a model with readouts is no one graph for torch.compile"):
            WHOLE["fullgraph"](model, inputs)(**inputs)
    with handle.forced(route), torch.no_grad():
        expected = model(**inputs).logits
        exported = WHOLE["export"](model, inputs)
        fewer = {name: x[1:3] for name, x in inputs.items()}
        torch.testing.assert_close(exported(**inputs).logits, expected)
        torch.testing.assert_close(exported(**fewer).logits, expected[1:3])


def test_a_cache_is_no_part_of_a_recorded_graph() -> None:
    model = build("llama")
    handle = attached(model, "auto")
    with handle.forced(ROUTE), pytest.raises(UserError, match="use_cache=False"):
        WHOLE["export"](model, batch(model))


def test_scripting_is_refused() -> None:
    model, _, layers = model_of("plain")
    handle = attached(model, layers)
    with pytest.raises(UserError, match=r"torch.jit.script reads the source of layer 0, where no route stands"):
        torch.jit.script(model)
    handle.detach()
    assert not any("__prepare_scriptable__" in vars(part) for part in model.modules())


def test_stacks_of_the_package() -> None:
    torch.manual_seed(0)
    layers = [Bent() for _ in range(DEPTH)]
    stack = rl_skip.ModuleStack(nn.Linear(3, 8), layers, nn.Linear(8, 2), width=8, layer_flops=[1.0] * DEPTH)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(8, DEPTH), hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=5.0)
    model, x = rl_skip.SkipModel(stack, policy, price=0.3).eval(), torch.randn(20, 3) * 3
    expected = model(x)
    route = model.last.route
    assert len(route.unique(dim=0)) > 1
    graphs = Graphs()
    for layer in stack.layers:
        layer.compile(backend=graphs)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), expected)
    assert model.last.route.equal(route)
    assert graphs.operations
    wholes = (
        lambda: torch.compile(model, backend="eager", fullgraph=True)(x),
        lambda: torch.export.export(model, (x,)),
        lambda: torch.jit.trace(model, x),
    )
    for whole in wholes:
        torch.compiler.reset()
        with pytest.raises(UserError, match="record the network of one route, PrunedNetwork"):
            whole()
    with pytest.raises(UserError, match="torch.jit.script cannot read a ModuleStack"):
        torch.jit.script(model)
    pruned = rl_skip.PrunedNetwork(copy.deepcopy(stack), [0, 2])
    exported = torch.export.export(pruned, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    torch.testing.assert_close(exported(x[:7]), pruned(x[:7]))
