"""Stacks of any modules, and the carry that goes through them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.means import masked_mean
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead
from rl_skip.nets.module_stack import ModuleStack


def _route(depth: int, rows: int) -> Tensor:
    route = torch.rand(rows, depth) < 0.5
    route[:, 0] = True
    return route


def _loop(stack: ModuleStack, hidden: Tensor, route: Tensor) -> Tensor:
    outputs = []
    for row in range(len(route)):
        x = hidden[row : row + 1]
        for i, layer in enumerate(stack.layers):
            x = layer(x) if route[row, i] else x
        outputs.append(stack.head(x))
    return torch.cat(outputs)


def test_rows_of_features() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(5)]
    x, route = torch.randn(9, 4), _route(5, 9)
    stack = ModuleStack(nn.Linear(4, 6), layers, nn.Linear(6, 3), width=6, example=x[:2])
    torch.testing.assert_close(routed_forward(stack, route, x).outputs, _loop(stack, stack.embed(x), route))
    torch.testing.assert_close(stack.pooled(stack.begin(x), None), stack.embed(x))
    torch.testing.assert_close(stack.pooled(stack.begin(x), torch.tensor([7, 2])), stack.embed(x)[[7, 2]])


def test_images() -> None:
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU()) for _ in range(5)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    x, route = torch.randn(9, 1, 8, 5), _route(5, 9)
    stack = ModuleStack(nn.Conv2d(1, 6, 1), layers, head, width=6, channel_dim=1, example=x[:2])
    torch.testing.assert_close(routed_forward(stack, route, x).outputs, _loop(stack, stack.embed(x), route), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stack.pooled(stack.begin(x), None), stack.embed(x).mean(dim=(2, 3)))
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(6, 5)))
    rollout = routed_forward(stack, PolicyRouter(policy, sample=True), x)
    torch.testing.assert_close(rollout.outputs, _loop(stack, stack.embed(x), rollout.route), atol=1e-5, rtol=1e-5)


class Sequences(nn.Module):
    """Token numbers, 0 for padding → vectors and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        return self.table(numbers), numbers > 0


def test_sequences_with_padding() -> None:
    torch.manual_seed(2)
    numbers = torch.randint(1, 20, (9, 7)) * (torch.arange(7) < torch.randint(1, 8, (9, 1)))
    layers = [AttentionBlock(6, 2) for _ in range(4)]
    stack = ModuleStack(Sequences(), layers, ClassifierHead(6, 3), width=6, layers_take_mask=True, example=numbers)
    outputs = routed_forward(stack, torch.ones(4, dtype=torch.bool), numbers).outputs
    for row, of in enumerate(numbers):
        x = stack.embed.table(of[of > 0]).unsqueeze(0)
        torch.testing.assert_close(stack.pooled(stack.begin(numbers), torch.tensor([row])), x.mean(dim=1))
        for layer in layers:
            x = layer(x)
        torch.testing.assert_close(outputs[row], stack.head.linear(stack.head.norm(x).mean(dim=1))[0], atol=1e-5, rtol=1e-5)


def test_a_block_adds_nothing_to_padding_and_does_not_compute_it() -> None:
    torch.manual_seed(3)
    block, x, mask = AttentionBlock(6, 2), torch.randn(4, 5, 6), torch.rand(4, 5) < 0.5
    mask[2] = False
    seen: list[int] = []
    block.mlp.register_forward_hook(lambda _module, arguments, _output: seen.append(arguments[0].shape[0]))
    y = block(x, mask)
    assert torch.equal(y[~mask], x[~mask])
    assert y.isfinite().all()
    assert seen == [int(mask.sum())]


def test_masked_mean_is_that_of_the_real_tokens() -> None:
    torch.manual_seed(4)
    x, mask = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.5
    mask[0], mask[1] = True, False
    for row in range(1, 5):
        expected = x[row][mask[row]].mean(dim=0) if mask[row].any() else torch.zeros(3)
        torch.testing.assert_close(masked_mean(x, mask)[row], expected)
    assert torch.equal(masked_mean(x, None), x.mean(dim=1))


def test_carry_takes_and_puts_rows_without_touching_what_it_came_from() -> None:
    hidden, memory = torch.arange(12.0).view(4, 3), torch.zeros(1, 1, 3).expand(4, 1, 3)
    carry = Carry(hidden=hidden, full_flops=torch.ones(4), memory=memory)
    taken = carry.take(torch.tensor([3, 0]))
    assert taken.hidden.tolist() == [[9, 10, 11], [0, 1, 2]]
    assert taken.mask is None and taken.full_flops.shape == (2,)
    taken.hidden, taken.memory = -taken.hidden, taken.memory + 1
    carry.put(torch.tensor([3, 0]), taken)
    assert carry.hidden.tolist() == [[0, -1, -2], [3, 4, 5], [6, 7, 8], [-9, -10, -11]]
    assert carry.memory[:, 0, 0].tolist() == [1, 0, 0, 1]
    assert hidden[0].tolist() == [0, 1, 2] and not memory.any()


def _linears(count: int) -> list[nn.Module]:
    return [nn.Linear(4, 4) for _ in range(count)]


def test_costs_that_cannot_be_known_are_refused() -> None:
    def build(layers: list[nn.Module], **options: object) -> None:
        ModuleStack(nn.Identity(), layers, nn.Identity(), width=4, **options)

    with pytest.raises(ValueError, match="layer_flops, or example"):
        build(_linears(2))
    with pytest.raises(ValueError, match="3 entries for 2 layers"):
        build(_linears(2), layer_flops=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="cost nothing"):
        build([nn.ReLU(), nn.ReLU()], example=torch.zeros(1, 4))


def test_a_stack_says_what_it_lacks() -> None:
    class Half(LayerStack):
        pass

    for call in (lambda s: s.begin(torch.zeros(1)), lambda s: s.run(0, None, None), lambda s: s.finish(None)):
        with pytest.raises(NotImplementedError, match="Half"):
            call(Half())


def test_what_a_stack_cannot_do_it_says() -> None:
    bare = LayerStack()
    assert bare.readout() is None and bare.head_modules() == [] and bare.described() is None and not bare.has_memory
    assert not bare.write_model(Path("nowhere"))
    with pytest.raises(UserError, match="a LayerStack cannot be pruned: it does not know"):
        bare.keep([0])
    with pytest.raises(UserError, match="adapters go into models from transformers; set --tune all"):
        bare.add_adapters(8, 16)


@pytest.mark.parametrize("takes_mask", [True, False])
def test_a_readout_reads_as_the_stack_itself_does(takes_mask: bool) -> None:
    head = ClassifierHead(6, 3) if takes_mask else nn.Sequential(nn.Flatten(), nn.Linear(24, 3))
    layers = [AttentionBlock(6, 2) for _ in range(3)]
    stack = ModuleStack(nn.Identity(), layers, head, width=6, tokens=4, layers_take_mask=takes_mask)
    carry = stack.begin(torch.randn(5, 4, 6))
    assert stack.head_modules() == [head]
    assert torch.equal(stack.read(deepcopy(stack.readout()), carry, None), stack.finish(carry))


def test_costs_are_counted_for_a_number_of_tokens_as_on_an_example() -> None:
    layers = [nn.Sequential(nn.Linear(6, 6 * k), nn.Linear(6 * k, 6)) for k in (1, 2, 3)]
    counted, shown = (ModuleStack(nn.Identity(), layers, nn.Identity(), width=6, **how) for how in ({"tokens": 4}, {"example": torch.randn(2, 4, 6)}))
    assert counted.layer_flops.tolist() == shown.layer_flops.tolist() == [2 * 2 * 4 * 36 * k for k in (1, 2, 3)]


def test_routed_training_of_any_modules_moves_every_layer_that_ran() -> None:
    torch.manual_seed(5)
    stack = ModuleStack(nn.Linear(4, 4), _linears(4), nn.Linear(4, 2), width=4, layer_flops=[1.0] * 4)
    route = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    routed_forward(stack, route, torch.randn(2, 4)).outputs.square().sum().backward()
    assert [layer.weight.grad is not None for layer in stack.layers] == [True, False, True, False]


def test_from_modules_finds_width_and_costs() -> None:
    torch.manual_seed(3)
    stage = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1))
    embed, head, x = nn.Conv2d(1, 6, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), torch.randn(9, 1, 8, 5)
    stack = ModuleStack.from_modules(embed, stage, head, channel_dim=1, example=x[:2])
    assert (stack.depth, stack.width) == (3, 6)
    torch.testing.assert_close(stack.layer_costs, torch.tensor([9.0, 1.0, 9.0]) / 19)
    assert [layer is mine for layer, mine in zip(stack.layers, stage, strict=True)] == [True] * 3
    torch.testing.assert_close(routed_forward(stack, torch.tensor([1, 0, 1]).bool(), x).outputs, head(stage[2](stage[0](embed(x)))))


class Pair(nn.Module):
    """A layer that returns more than the hidden state."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, None]:
        return hidden, None


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "there are no layers"),
        ([nn.Linear(6, 6), nn.Linear(6, 5)], r"layer 1, Linear, turns a tensor of shape \(2, 6\) into one of shape \(2, 5\)"),
        ([Pair(), nn.Linear(6, 6)], r"layer 0, Pair, turns a tensor of shape \(2, 6\) into a tuple"),
    ],
)
def test_from_modules_refuses_what_cannot_be_skipped(layers: list[nn.Module], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ModuleStack.from_modules(nn.Linear(4, 6), layers, nn.Linear(6, 3), example=torch.zeros(2, 4))
