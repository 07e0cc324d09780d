"""Each closed formula against PyTorch's own count of the operators that run, and what is counted against what is run."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rl_skip.core.costs import attention_block_flops, linear_flops
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.routers import FixedRoute, PolicyRouter
from rl_skip.core.stack import LayerStack
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead
from rl_skip.nets.gated import AdapterBody, AttentionBody, GatedStack, MemoryGate
from rl_skip.nets.module_stack import ModuleStack
from rl_skip.nets.network import NetworkConfig, build_network


def counted(call) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_linear() -> None:
    assert linear_flops(7, 5) == counted(lambda: nn.Linear(7, 5)(torch.randn(1, 7)))


@pytest.mark.parametrize(("tokens", "width", "heads", "ratio"), [(1, 8, 1, 4), (5, 12, 3, 4), (17, 16, 4, 2)])
def test_attention_block(tokens: int, width: int, heads: int, ratio: int) -> None:
    block = AttentionBlock(width, heads, mlp_ratio=ratio)
    assert attention_block_flops(tokens, width, ratio) == counted(lambda: block(torch.randn(1, tokens, width)))


@pytest.mark.parametrize(("width", "keys"), [(8, 64), (9, 5)])
def test_memory_gate(width: int, keys: int) -> None:
    gate = MemoryGate(width, keys)
    assert gate.flops * 7 == counted(lambda: gate(torch.randn(1, 7, width)))


@pytest.mark.parametrize("make", [lambda: AdapterBody(8, True), lambda: AdapterBody(8, False), lambda: AttentionBody(8, 2)])
def test_bodies(make) -> None:
    body = make()
    lengths = [1, 3, 11]
    assert body.flops(torch.tensor(lengths)).tolist() == [counted(lambda T=T: body(torch.randn(1, T, 8), None)) for T in lengths]


@pytest.mark.parametrize("allow_exit", [False, True])
def test_decision(allow_exit: bool) -> None:
    rules = JumpRules.reaching(ObservationLayout(10, 7), 3, allow_exit=allow_exit, hidden=32)
    policy = JumpPolicy(rules)
    assert rules.decision_flops * 4 == counted(lambda: policy(torch.zeros(4, rules.layout.size)))


def _count_begin_to_finish(stack: LayerStack, policy: JumpPolicy | None, inputs, route: Tensor | None = None):
    """What a routed forward pass runs between begin and finish, and its rollout."""
    parts = []
    router = FixedRoute(route) if policy is None else PolicyRouter(policy, sample=True, route=route)
    total = counted(lambda: parts.append(routed_forward(stack, router, inputs)))
    outside = counted(lambda: stack.finish(stack.begin(inputs)))
    return total - outside, parts[0]


@pytest.mark.parametrize("allow_exit", [False, True])
def test_blocks_are_counted_what_they_run(allow_exit: bool) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(layers=6, width=16, heads=2)
    stack = build_network(config, lambda width: nn.Linear(3, width), tokens=9, classes=4)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(16, 6), allow_exit=allow_exit))
    run, rollout = _count_begin_to_finish(stack, policy, torch.randn(20, 9, 3))
    assert 0 < rollout.route.float().mean() < 1
    assert (rollout.compute * float(stack.layer_flops.sum())).sum().item() == pytest.approx(run, rel=1e-5)


def _wakened(stack: GatedStack) -> GatedStack:
    """Gates that leave some tokens inactive."""
    for gate in stack.gates:
        gate.mlp[2].weight.data.mul_(16)
        gate.join.bias.data.fill_(0.5)
    return stack


@pytest.mark.parametrize("padded", [False, True])
def test_gated_tokens_are_counted_what_they_run(padded: bool) -> None:
    torch.manual_seed(1)
    stack = _wakened(GatedStack(8, 2, 5))
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(8, 5)))
    x, mask = torch.randn(12, 10, 8), torch.arange(10) < torch.randint(1, 11, (12, 1))
    inputs = {"x": x, "mask": mask} if padded else x
    run, rollout = _count_begin_to_finish(stack, policy, inputs)
    assert (rollout.compute * stack.begin(inputs).full_flops).sum().item() == pytest.approx(run, rel=1e-5)


@pytest.mark.parametrize("memory_gate", [False, True])
def test_gated_attention_is_counted_what_it_runs_but_for_the_ragged_edge(memory_gate: bool) -> None:
    """Tokens of one row are exact. Rows of unequal lengths share a rectangle of attention weights and layer gates."""
    torch.manual_seed(2)
    stack = GatedStack(16, 2, 5, body="attention", memory_gate=memory_gate)
    if memory_gate:
        _wakened(stack)
    x, everything = torch.randn(12, 10, 16), torch.ones(5, dtype=torch.bool)
    for row in x.split(1):
        run, rollout = _count_begin_to_finish(stack, None, row, everything)
        assert (rollout.compute * stack.begin(row).full_flops).sum().item() == pytest.approx(run, rel=1e-5)
    run, rollout = _count_begin_to_finish(stack, None, x, everything)
    counted = (rollout.compute * stack.begin(x).full_flops).sum().item()
    rectangles = 12 * 5 * (4 * 10 * 10 * 16 + 10 * 2 * 16)
    assert counted <= run * (1 + 1e-5)
    assert run - counted < rectangles
    if not memory_gate:
        assert counted == pytest.approx(run, rel=1e-5)


def test_running_everything_costs_a_little_over_one() -> None:
    torch.manual_seed(3)
    stack = GatedStack(64, 4, 6, body="attention", tokens=16)
    mask = torch.arange(16) < torch.randint(4, 17, (8, 1))
    for inputs in (torch.randn(8, 16, 64), {"x": torch.randn(8, 16, 64), "mask": mask}):
        compute = routed_forward(stack, torch.ones(6, dtype=torch.bool), inputs).compute
        assert compute.min() > 1 and compute.max() < 1.2


def test_layers_are_counted_on_an_example() -> None:
    torch.manual_seed(4)
    layers = [
        nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True),
        nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True).eval(),
        nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)),
    ]
    stack = ModuleStack(nn.Linear(3, 16), layers, nn.Linear(16, 2), width=16, example=torch.randn(4, 5, 3))
    encoder = 5 * (4 * linear_flops(16, 16) + 2 * linear_flops(16, 32)) + 2 * linear_flops(16, 1) * 5 * 5
    assert stack.layer_flops.tolist() == [encoder, encoder, 5 * linear_flops(16, 16)]
    assert stack.layer_costs.sum().item() == pytest.approx(1)


def test_convolutions_are_counted_on_an_example() -> None:
    layers = [nn.Conv2d(6, 6, size, padding=size // 2) for size in (1, 3, 5)]
    stack = ModuleStack(nn.Conv2d(1, 6, 1), layers, nn.Flatten(), width=6, channel_dim=1, example=torch.randn(2, 1, 7, 8))
    assert stack.layer_flops.tolist() == [2 * 6 * 6 * size * size * 7 * 8 for size in (1, 3, 5)]


def test_counting_leaves_no_trace() -> None:
    torch.manual_seed(5)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train(i == 0) for i in range(2)]
    embed = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    tensors = [tensor for part in [embed, *layers] for tensor in part.state_dict().values()]
    before, drawn = [tensor.clone() for tensor in tensors], torch.get_rng_state()
    stack = ModuleStack(embed, layers, nn.Flatten(), width=4, channel_dim=1, example=torch.randn(1, 1, 6, 6, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, kept) for tensor, kept in zip(tensors, before, strict=True))
    assert [part.training for part in (stack.embed, *stack.layers)] == [True, True, False]
    assert torch.backends.mha.get_fastpath_enabled()


def test_head_and_embedding_are_not_the_stacks_cost() -> None:
    layers = [AttentionBlock(8, 2) for _ in range(3)]
    small, large = nn.Linear(3, 8), nn.Sequential(nn.Linear(3, 500), nn.Linear(500, 8))
    costs = [
        ModuleStack(embed, layers, ClassifierHead(8, 2), width=8, example=torch.randn(1, 4, 3), layers_take_mask=True).layer_flops.tolist()
        for embed in (small, large)
    ]
    assert costs[0] == costs[1] == [attention_block_flops(4, 8)] * 3
