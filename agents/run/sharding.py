"""A network whose weights are split over the processes that train it (FSDP2), each layer by itself: gathered where a pass needs them, then let go."""

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from agents.options.config import TrainConfig
from agents.run.split_tensors import is_split
from rl_skip.attached.called import CalledStack
from rl_skip.core.batches import deployed
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.processes import talking, together
from rl_skip.core.stack import LayerStack

__all__ = ["ShardedWeights", "check_options", "shard"]

T = TypeVar("T")
FEW = torch.arange(5)
"""Rows, and tokens of each, some of them twice where there are fewer, on which it is found where the rows are in what layers are given."""


def check_options(config: TrainConfig, own_stack: bool) -> None:
    """Refuses to split a network where that is not possible.

    Args:
        own_stack: whether the network is an object of somebody else's, who would get it back in parts.

    Raises:
        UserError: in a line that says what to set.
    """
    if not config.shard:
        return
    if not together().several:
        raise UserError("--shard splits the network over processes, and one was started; start more by torchrun --nproc_per_node, or set --no-shard")
    for wrong, why, advice in (
        (own_stack, "a network that is given as an object would be left in parts", "name a model with --model"),
        (config.schedule.precision == "fp16", "a loss that is scaled up is not checked over several processes", "set --precision bf16"),
        (config.pricing.cost == "latency", "the time of a layer holds that of sending its weights", "set --cost flops"),
    ):
        if wrong:
            raise UserError(f"--shard: {why}; {advice}, or set --no-shard")


class _Layer(nn.Module):
    """A layer as the unit in which weights are gathered; the model's own module is not changed, so that the model can call it for other ends."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


class _Network(nn.Module):
    """A stack with its layers as units: what is outside of them, such as embedding and head, is gathered for the whole of a pass."""

    def __init__(self, stack: LayerStack, layers: list[_Layer]) -> None:
        super().__init__()
        self.layers, self.stack = nn.ModuleList(layers), stack

    def forward(self, call: Callable[[], T]) -> T:
        return call()


class ShardedWeights:
    """Gathers the weights of a stack that `shard` has split, see `SplitWeights`."""

    def __init__(self, network: FSDPModule, layers: list[FSDPModule], stack: LayerStack) -> None:
        self.network, self.layers = network, layers
        self.parameters = [parameter for parameter in stack.parameters() if is_split(parameter)]

    def passed(self, call: Callable[[], T]) -> T:
        """One pass, after which the weights stay gathered that its gradient needs."""
        try:
            with talking():
                made: T = self.network(call)  # type: ignore[operator]
        except Exception:
            self.network.reset_iter_state()
            raise
        if not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters)):
            self.network.reset_iter_state()  # no backward pass comes, which would let them go, and forget in which order they were gathered
        return made

    def passed_over(self, i: int) -> None:
        """Takes part in gathering layer `i` for the processes that run it."""
        self.layers[i].unshard()
        self.layers[i].reshard()


def shard(stack: LayerStack, inputs: Inputs, device: torch.device) -> None:
    """Splits the weights of a stack, which is on the CPU, over all processes, and takes its parts to a device; readouts are small and stay whole.

    Gradients of split weights are sums over the processes, as those of the others are.

    Args:
        inputs: of a few rows, on the CPU.

    Raises:
        UserError: if the network is none of texts from transformers, or its layers have weights in common.
    """
    if not isinstance(stack, CalledStack) or not isinstance(inputs, dict) or any(tensor.dim() != 2 for tensor in inputs.values()):
        raise UserError("--shard splits models from transformers that read tokens; set --task text or --task language, or --no-shard")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--shard splits networks over processors or GPUs, not {device.type}; set --device cpu, or --no-shard")
    weights = [id(parameter) for layer in stack.routed for parameter in layer.parameters()]
    if len(set(weights)) < len(weights):
        raise UserError("--shard splits each layer by itself, and layers of this model have weights in common; set --no-shard")
    together().copy_first(chain(stack.parameters(), stack.buffers()))
    _find_rows(stack, inputs)
    mesh = init_device_mesh(device.type, (together().count,))
    layers = [_Layer(layer) for layer in stack.routed]
    network = _Network(stack, layers)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    elsewhere = {parameter for layer in layers for parameter in layer.parameters()}
    if stack.readouts is not None:
        elsewhere |= set(stack.readouts.to(device).parameters())
    fully_shard(network, mesh=mesh, reshard_after_forward=False, ignored_params=elsewhere)
    for unit in (network, *layers):
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    for module in stack.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    stack.forwards = tuple(layers)
    stack.split = ShardedWeights(network, layers, stack)  # type: ignore[arg-type]
    with torch.no_grad():
        stack.split.passed(lambda: None)  # FSDP takes the first that is called for the outermost


def _find_rows(stack: CalledStack, inputs: dict[str, torch.Tensor]) -> None:
    """Finds where the rows are in all arguments of the layers: later a layer could not be called for that by one process alone.

    As many rows as tokens, so that whatever has either in its shape could be rows, and is looked at.
    """
    few = {name: tensor[FEW % tensor.shape[0]][:, FEW % tensor.shape[1]] for name, tensor in inputs.items()}
    with deployed(stack):
        routed_forward(stack, torch.ones(stack.depth, dtype=torch.bool), few)
    stack.places.complete = True
