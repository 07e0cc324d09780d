"""A step of network, policy and critic down a gradient: cut to a length, and left out where float16 had no room for it."""

from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from agents.options.config import ScheduleConfig
from agents.run.moments import load_moments
from agents.run.split_tensors import clip_gradient, is_split
from agents.run.tuning import heads_of
from rl_skip.core.finite import NotFinite, not_finite
from rl_skip.core.stack import LayerStack

__all__ = ["Descent", "parameters_of"]

SMALLEST_SCALE = 1.0
"""Of the loss in float16: a gradient that is not finite at that is not too large for the number format alone."""


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that an optimiser steps, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Descent:
    """The optimisers of a network and of what decides, which step together.

    Args:
        stack: the network.
        policy: the jump policy.
        critic: learns at the policy's rate.
        schedule: rates, decay, and how long a gradient may be.
        scaler: scales the loss up where gradients are in float16, which has no small numbers, and leaves out steps in which it was too much.
        fused: whether the network's optimiser is PyTorch's fused one, with which an update of large embeddings takes a sixth less time.
    """

    def __init__(
        self, stack: LayerStack, policy: nn.Module, critic: nn.Module, schedule: ScheduleConfig, scaler: torch.amp.GradScaler, *, fused: bool
    ) -> None:
        self.stack, self.policy, self.critic, self.scaler = stack, policy, critic, scaler
        self.limit = schedule.max_grad_norm
        self.trainable = [parameter for parameter in stack.parameters() if parameter.requires_grad]
        """What of the network learns in the warm-up."""
        one_call: dict[str, Any] = {"fused": True} if fused else {"foreach": True}  # the latter is to the bit what a call for each tensor gives
        groups = _parameter_groups(stack, schedule.head_rate)
        self.network_optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, **one_call)
        self._deciding = list(policy.parameters()), list(critic.parameters())
        self.policy_optimizer = torch.optim.Adam([*chain(*self._deciding)], lr=schedule.policy_learning_rate)
        self.policy_grad_norm = torch.zeros((), device=self._deciding[0][0].device)
        """Of the policy's gradient in the last step, before it was cut; 0 where the step was left out."""

    def set_rates(self, network: float, deciding: float) -> None:
        """Sets the learning rates of the network, of whose heads it is a factor, and of what decides."""
        for group in self.network_optimizer.param_groups:
            group["lr"] = network * group.get("factor", 1.0)
        for group in self.policy_optimizer.param_groups:
            group["lr"] = deciding

    def forget(self) -> None:
        """Drops all gradients."""
        for optimizer in (self.network_optimizer, self.policy_optimizer):
            for parameter in parameters_of(optimizer):
                parameter.grad = None

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, a scalar, to what is there."""
        self.scaler.scale(loss).backward()

    def apply(self, loss: Tensor, beside: torch.optim.Optimizer | None = None) -> Tensor:
        """One step of both optimisers down the gradient of `loss`, in one process. Returns the norm of the network's gradient.

        Args:
            loss: a scalar.
            beside: an optimiser of more that learns from it.

        Raises:
            NotFinite: before the step, if the gradient is not finite.
        """
        self.forget()
        if beside is not None:
            beside.zero_grad()
        self.backward(loss)
        return self.step(loss, beside)

    def step(self, loss: Tensor, beside: torch.optim.Optimizer | None = None) -> Tensor:
        """Cuts the gradient and steps; where scaling it up was too much, steps nothing. Returns the norm of the network's gradient, or then 0.

        Args:
            loss: whose gradient it is, for the message.
            beside: as `apply` takes it.

        Raises:
            NotFinite: before the step, if the gradient is not finite.
        """
        every = (self.network_optimizer, self.policy_optimizer, *([] if beside is None else [beside]))
        optimizers = [optimizer for optimizer in every if any(parameter.grad is not None for parameter in parameters_of(optimizer))]
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        norm = clip_gradient(self.trainable, self.limit)
        deciding = [nn.utils.clip_grad_norm_(parameters, self.limit) for parameters in self._deciding]
        deciding += [] if beside is None else [nn.utils.clip_grad_norm_(parameters_of(beside), self.limit)]
        finite = bool(sum(deciding, norm).isfinite())
        if not finite and not (self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE):
            self._refuse_gradient(loss)
        for optimizer in optimizers if finite else ():  # the scaler by itself would leave out those alone whose own gradient is too large
            self.scaler.step(optimizer)
        self.scaler.update()
        self.policy_grad_norm = deciding[0] if finite else torch.zeros_like(deciding[0])
        return norm if finite else torch.zeros_like(norm)

    def _refuse_gradient(self, loss: Tensor) -> NoReturn:
        parts = {"network": self.stack, "policy": self.policy, "critic": self.critic}
        named = {f"{part}.{name}": weight.grad for part, module in parts.items() for name, weight in module.named_parameters()}
        last = not_finite((name, gradient) for name, gradient in reversed(named.items()) if gradient is not None)  # it is taken backwards
        raise NotFinite(f"the gradient of {last or 'what learns beside network and policy'} is not finite, and the loss is {loss.item():.4g}")

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {
            "network_optimizer": self.network_optimizer.state_dict(),
            "policy_optimizer": self.policy_optimizer.state_dict(),
            **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken; what else is in `state` is not looked at."""
        for name in ("network_optimizer", "policy_optimizer"):
            load_moments(getattr(self, name), state[name])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _parameter_groups(stack: LayerStack, head_rate: float) -> list[dict[str, Any]]:
    """All parameters of a network; those of heads and readouts learn at a rate of their own where that is not 1. Those that are split over
    processes are apart from the others, in the same order: an optimiser takes no two kinds at once."""
    groups = _groups_by_rate(stack, head_rate)
    if stack.split is None:
        return groups
    kinds = [(group, [p for p in group["params"] if is_split(p) == split]) for group in groups for split in (True, False)]
    return [{**group, "params": kind} for group, kind in kinds if kind]


def _groups_by_rate(stack: LayerStack, head_rate: float) -> list[dict[str, Any]]:
    if head_rate == 1:
        return [{"params": list(stack.parameters())}]
    heads = {id(parameter) for module in heads_of(stack) for parameter in module.parameters()}
    parts = ([p for p in stack.parameters() if (id(p) in heads) == of_heads] for of_heads in (False, True))
    return [{"params": part, "factor": rate} for part, rate in zip(parts, (1.0, head_rate), strict=True)]
