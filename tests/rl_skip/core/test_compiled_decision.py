"""A look and a decision as one function, against the policy that is asked without it."""

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.export import ExportedProgram

import rl_skip.core.compiled_decision as compiled_decision
from rl_skip import Feature, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, PolicyRouter, UserError, View, routed_forward
from rl_skip.core.compiled_decision import compile_policy
from rl_skip.core.features import CONFIDENCES, Answer, HiddenState, WorkingMemory
from rl_skip.core.forward import Rollout
from rl_skip.core.readouts import Readouts
from rl_skip.core.stack import LayerStack
from rl_skip.export.policy_folder import SkipModel
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead
from rl_skip.nets.network import NetworkConfig, build_network
from tests.rl_skip.recorded import record

L, D, T, CLASSES = 5, 8, 6, 3
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, g++")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[ExportedProgram]:
    """The functions that are made, in place of compiling them."""
    return record(monkeypatch)


class Norm(Feature):
    """One of a person's own, that compares with the last look."""

    name, at_once = "norm", True

    def size(self, width: int) -> int:
        return 2

    def read(self, view: View) -> Tensor:
        norm = view.hidden.norm(dim=1, keepdim=True)
        return torch.cat([norm, view.previous(self.name, norm)], dim=1)


class Embed(nn.Module):
    """Numbers as tokens; those after a zero are padding."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked, self.linear = masked, nn.Linear(1, D)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.linear(x.unsqueeze(-1))
        return (hidden, (x != 0).cummin(dim=1).values) if self.masked else hidden


def blocks(masked: bool = False) -> ModuleStack:
    layers = [AttentionBlock(D, 2) for _ in range(L)]
    return ModuleStack(Embed(masked), layers, ClassifierHead(D, CLASSES), width=D, layer_flops=[1.0] * L, layers_take_mask=True).eval()


def vectors() -> ModuleStack:
    layers = [nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.Tanh()) for _ in range(L)]
    return ModuleStack(nn.Linear(T, D), layers, nn.Linear(D, CLASSES), width=D, layer_flops=[1.0] * L)


def tagger() -> ModuleStack:
    """It answers each token."""
    layers = [AttentionBlock(D, 2) for _ in range(L)]
    head = nn.Linear(D, CLASSES)
    return ModuleStack(Embed(False), [Unmasked(layer) for layer in layers], head, width=D, layer_flops=[1.0] * L).eval()


class Unmasked(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden, None)


def policy_for(stack: LayerStack, *features: Feature, **rules: bool) -> JumpPolicy:
    """One whose rows part, each readout another."""
    readouts = stack.readouts
    if isinstance(readouts, Readouts):
        for parameter in readouts.parameters():
            nn.init.normal_(parameter, std=0.5)
    layout = ObservationLayout(stack.width, stack.depth, features=features, readout_flops=0.0 if readouts is None else readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, **({"allow_exit": readouts is not None} | rules)))
    nn.init.normal_(policy.fc_out.weight, std=0.05)
    return policy


def inputs(rows: int, tokens: int = T) -> Tensor:
    x = 4 * torch.randn(rows, tokens)
    x[: rows // 2, tokens - 2 :] = 0
    return x


@torch.no_grad()
def rollouts(stack: LayerStack, policy: JumpPolicy, x: Tensor, price: Tensor | float = 0.1) -> tuple[Rollout, Rollout]:
    """The likeliest jumps, and drawn ones, which differ from row to row."""
    chances = torch.rand(x.shape[0], L, generator=torch.Generator().manual_seed(1))
    return routed_forward(stack, policy, x, price=price), routed_forward(stack, PolicyRouter(policy, chances=chances), x, price=price)


def check_same(found: tuple[Rollout, Rollout], expected: tuple[Rollout, Rollout]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.route.equal(other.route)
        for name in ("outputs", "spent", "log_probs", "entropies"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def gated() -> LayerStack:
    """One with a working memory."""
    return build_network(NetworkConfig(layers=L, width=D, heads=2, stack="skip-layer"), lambda width: Embed(False), T, CLASSES).eval()


KINDS: dict[str, Callable[[], LayerStack]] = {
    "tokens": blocks,
    "masked": lambda: blocks(masked=True),
    "vectors": vectors,
    "tagger": tagger,
    "gated": gated,
}


@pytest.mark.parametrize("plan", [{}, {"rank": 2}], ids=["copies", "adapters"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_is_seen_as_without(recorded: list[ExportedProgram], kind: str, plan: dict[str, int]) -> None:
    stack = KINDS[kind]()
    stack.add_readouts(inputs(2), plan=plan)
    policy = policy_for(stack, HiddenState(), *([WorkingMemory()] if stack.has_memory else []), *CONFIDENCES, Answer(2), Norm())
    batches = [inputs(rows) for rows in (7, 1, 12)]
    expected = [rollouts(stack, policy, x) for x in batches]
    assert expected[0][1].route.unique(dim=0).shape[0] > 2  # rows part
    compile_policy(policy, stack, layers=False)
    for x, one in zip(batches, expected, strict=True):
        check_same(rollouts(stack, policy, x), one)
    assert len(recorded) == 1  # for any number of rows


@pytest.mark.parametrize(
    ("build", "counts", "functions"),
    [(blocks, (4, 9, 3), 1), (tagger, (4, 9, 4), 2)],
    ids=["one for any number of tokens", "one for each number where each token is answered"],
)
def test_it_serves_any_number_of_tokens(
    recorded: list[ExportedProgram], build: Callable[[], ModuleStack], counts: tuple[int, ...], functions: int
) -> None:
    stack = build()
    stack.add_readouts(inputs(2))
    policy = policy_for(stack, *CONFIDENCES)
    batches = [inputs(3, tokens) for tokens in counts]
    expected = [rollouts(stack, policy, x) for x in batches]
    compile_policy(policy, stack, layers=False)
    for x, one in zip(batches, expected, strict=True):
        check_same(rollouts(stack, policy, x), one)
    assert len(recorded) == functions


def test_weights_are_those_of_the_moment(recorded: list[ExportedProgram]) -> None:
    stack, x = blocks(), inputs(6)
    stack.add_readouts(x)
    policy = policy_for(stack, *CONFIDENCES)
    without = copy.deepcopy(policy)
    compile_policy(policy, stack, layers=False)
    rollouts(stack, policy, x)
    for change in (lambda: nn.init.normal_(stack.readouts.each[2].linear.weight), lambda: nn.init.normal_(policy.fc_in.weight)):  # type: ignore[union-attr]
        change()
        without.load_state_dict(policy.state_dict())
        check_same(rollouts(stack, policy, x), rollouts(stack, without, x))
    assert len(recorded) == 1
    stack.double()
    check_same(rollouts(stack, policy, x.double()), rollouts(stack, without, x.double()))
    assert len(recorded) == 2


def test_threads_that_begin_at_once_share_what_is_made(recorded: list[ExportedProgram]) -> None:
    stack, x = blocks(), inputs(6)
    stack.add_readouts(x)
    policy = policy_for(stack, *CONFIDENCES)
    expected = rollouts(stack, policy, x)
    compile_policy(policy, stack, layers=False)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: rollouts(stack, policy, x), range(8)):
            check_same(found, expected)
    assert len(recorded) == 1 and not torch.compiler.is_compiling()


def test_prices_below_the_range(recorded: list[ExportedProgram]) -> None:
    stack, x = blocks(), inputs(8)
    stack.add_readouts(x)
    policy = policy_for(stack, *CONFIDENCES)
    policy.fc_out.bias.data[0] = -3.0
    without, price = copy.deepcopy(policy), torch.tensor([0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0, 1e3])
    compile_policy(policy, stack, layers=False)
    expected = rollouts(stack, without, x, price)
    check_same(rollouts(stack, policy, x, price), expected)
    assert expected[0].route[1].sum() > rollouts(stack, without, x)[0].route[1].sum()  # of the row whose compute is nearly free


def test_with_gradients_the_policy_itself_is_asked(recorded: list[ExportedProgram]) -> None:
    stack, x = blocks(), inputs(4)
    stack.add_readouts(x)
    policy = policy_for(stack, *CONFIDENCES)
    compile_policy(policy, stack, layers=False)
    routed_forward(stack, policy, x, price=0.1).log_probs.sum().backward()
    assert policy.fc_in.weight.grad is not None and not recorded


def test_copies_of_a_policy_decide_without() -> None:
    stack = blocks()
    policy = policy_for(stack, HiddenState())
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    compile_policy(policy, stack, layers=False)
    assert copy.deepcopy(policy).compiled is None and pickle.loads(pickle.dumps(policy)).compiled is None


class Counting(Feature):
    """It may read what changes while rows are routed, as any that does not say that it does not."""

    name = "counting"

    def read(self, view: View) -> Tensor:
        return view.state.route.sum(dim=1, keepdim=True).float()  # type: ignore[attr-defined]


class Told(Feature):
    """It says that it reads the view alone, and reads numbers out of tensors, which cannot be recorded."""

    name, at_once = "told", True

    def read(self, view: View) -> Tensor:
        return view.price.unsqueeze(1) * len([one for one in view.price.tolist() if one > 0.5])


def test_what_cannot_be_compiled_is_refused_in_one_line(recorded: list[ExportedProgram]) -> None:
    stack = blocks()
    for policy, said in [
        (policy_for(stack, Counting()), "the feature 'counting' may read what changes while rows are routed, so it is not compiled; set at_once"),
        (policy_for(stack, HiddenState(), scope="input"), "a policy that looks at the input alone looks once"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(UserError, match=said):
            compile_policy(policy, stack, layers=False)
    policy = policy_for(stack, Told())
    compile_policy(policy, stack, layers=False)
    with pytest.raises(UserError, match="the feature 'told' failed|the policy cannot be compiled") as caught:
        rollouts(stack, policy, inputs(3))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    for layers in (False, True):
        missing = r"takes a C\+\+ compiler, and none was found; install g\+\+, set CXX to one, or leave compile\(\) out"
        with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match=missing):
            compile_policy(policy_for(stack, HiddenState()), stack, layers)


@needs_compiler
def test_a_compiled_model_answers_as_before_at_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, and its layers with it, in no more graphs than one for a single row and one for any other number."""
    stack = blocks(masked=True)
    stack.add_readouts(inputs(2))
    model = SkipModel(stack, policy_for(stack, *CONFIDENCES), price=0.1).eval()
    batches = [inputs(rows, tokens) for rows, tokens in ((3, 6), (1, 6), (8, 5), (2, 9), (5, 6))]
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, _example: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compile_module(module, backend=counting, **options))
    with torch.no_grad():
        expected = [(model(x), model.last) for x in batches]
        torch.compiler.reset()
        SkipModel.compile(model, layers=True)
        for x, (outputs, last) in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(x), outputs, atol=1e-5, rtol=1e-5)
            assert model.last is not None and last is not None and model.last.route.equal(last.route)
    assert model.policy.compiled is not None and len(model.policy.compiled.functions) == 1
    assert 0 < len(graphs) <= 2 * _pieces(graphs)


def _pieces(graphs: list[torch.fx.GraphModule]) -> int:
    """How many graphs one layer takes."""
    return len({graph.code for graph in graphs})


@needs_compiler
def test_where_the_host_is_apart_python_calls_what_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: masks and absent memory among what a decision is made of, any number of rows and tokens."""
    monkeypatch.setattr(compiled_decision, "_compiled", lambda program, device: compiled_decision._called_from_python(program))
    stack = blocks(masked=True)
    stack.add_readouts(inputs(2))
    policy = policy_for(stack, *CONFIDENCES)
    without = copy.deepcopy(policy)
    compile_policy(policy, stack, layers=False)
    with torch.no_grad():
        for rows, tokens in ((3, 6), (1, 6), (8, 5)):
            x = inputs(rows, tokens)
            check_same(rollouts(stack, policy, x), rollouts(stack, without, x))
    assert policy.compiled is not None and len(policy.compiled.functions) == 1
