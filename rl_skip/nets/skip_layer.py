"""The original module, batched and made to learn: a gated stack with its own policy."""

import inspect
import math
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rl_skip.core.features import default_features
from rl_skip.core.fields import Fields
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.kinds import NetworkKind
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout, PolicyScope, longest_jump
from rl_skip.core.reward import LINEAR
from rl_skip.core.routers import PolicyRouter
from rl_skip.nets.gated import BodyName, GatedStack, MemoryGate

__all__ = ["SKIP_LAYER", "SkipLayer"]


class SkipLayer(GatedStack):
    """The drop-in module, x (B, T, D) → x (B, T, D): a gated stack with its own policy.

    In training mode jumps are sampled, in evaluation mode the likeliest is taken. The policy learns by reinforcement:
    add `policy_loss(score)` to your own loss.

    Args:
        dims: width D.
        head: attention heads.
        layer: number of layers L.
        max_jump: J, the longest jump, shortened to what the depth leaves; None reaches every later layer.
        scope: see `JumpRules`.
        allow_exit: the same.
        price: the price λ, in score per unit of relative compute. Higher skips more; 0.01 to 1.
        options: of `GatedStack`.

    Example:
        >>> jmp = SkipLayer(dims=16, head=2, layer=4)
        >>> x = jmp(torch.randn(3, 5, 16))
        >>> loss = x.square().mean() + jmp.policy_loss(score=torch.rand(3))
        >>> loss.backward()
        >>> jmp.logs["jumps"].shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        dims: int,
        head: int,
        layer: int,
        *,
        max_jump: int | None = 2,
        scope: PolicyScope = "state",
        allow_exit: bool = False,
        price: float = 0.1,
        **options: object,
    ) -> None:
        super().__init__(dims, head, layer, **options)  # type: ignore[arg-type]
        longest = longest_jump(layer, allow_exit)
        jump = longest if max_jump is None else min(max_jump, max(longest, 1))
        layout = ObservationLayout(dims, layer, features=default_features(self.has_memory))
        self.policy = JumpPolicy(JumpRules(layout, jump, allow_exit=allow_exit, scope=scope))
        self.price = price
        self._arguments: dict[str, Any] = {"dims": dims, "head": head, "layer": layer, **options}
        self.logs: dict[str, Tensor] = {}
        self._rollout: Rollout | None = None
        self._running_loss: float | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs: Inputs = x if mask is None else {"x": x, "mask": mask}
        rollout = routed_forward(self, PolicyRouter(self.policy, sample=self.training), inputs, price=self.price)
        self._rollout = rollout if self.training else None
        self.logs = {"jumps": rollout.jumps, "route": rollout.route, "compute": rollout.compute}
        return rollout.outputs

    def policy_loss(self, score: Tensor, entropy: float = 0.01) -> Tensor:
        """REINFORCE for the jumps of the last forward pass, with the batch's mean as baseline.

        Args:
            score: (B,), how good the network was on each row, higher is better, 0 to 1.
            entropy: weight of the entropy bonus. Higher explores longer; 0.001 to 0.1.

        Raises:
            ValueError: if the last forward pass was not made in training mode.
        """
        if self._rollout is None:
            raise ValueError("policy_loss needs a forward pass in training mode first: call train(), then the module")
        rollout, taken = self._rollout, self._rollout.decided.float()
        if score.shape != taken.shape[:1]:
            raise ValueError(f"policy_loss needs a score for each row, of shape {tuple(taken.shape[:1])}, got {tuple(score.shape)}")
        price = torch.full_like(rollout.compute, self.price)
        to_go = LINEAR.to_go(score.detach(), rollout.spent, price)  # (B, L)
        baseline = (to_go * taken).sum(dim=0) / taken.sum(dim=0).clamp(min=1.0)  # (L,)
        surrogate = rollout.log_probs * (to_go - baseline) * taken + entropy * rollout.entropies
        return -surrogate.sum(dim=1).mean()

    def described(self) -> dict[str, Any] | None:
        """The constructor's arguments; None for bodies of a person's own, which a file cannot hold."""
        bound = inspect.signature(GatedStack).bind(**self._arguments)
        bound.apply_defaults()
        return None if callable(bound.arguments["body"]) else {"kind": "SkipLayer", **bound.arguments}

    def network_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().network_state().items() if not name.startswith("policy.")}

    def take_policy(self, policy: nn.Module, price: float) -> None:
        assert isinstance(policy, JumpPolicy)
        self.policy, self.price = policy, price

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a saved module has no use for the graph of the last forward pass, and could not take it along.
        return {**self.__dict__, "_rollout": None}

    @torch.no_grad()
    def update_threshold(self, loss: float | Tensor, lr: float = 0.01) -> None:
        """Moves the gates' thresholds: a loss above its running level activates more tokens, one below it fewer."""
        loss = float(loss)
        if not math.isfinite(loss):
            raise ValueError(f"update_threshold needs a finite loss, got {loss}")
        level = loss if self._running_loss is None else self._running_loss
        for gate in self.gates or []:
            assert isinstance(gate, MemoryGate)
            gate.threshold.add_(lr * ((loss < level) - (loss > level))).clamp_(0.0, 1.0)
        self._running_loss = 0.9 * level + 0.1 * loss


def _check(fields: Fields, width: int, depth: int) -> None:
    fields.same("dims", width)
    fields.same("layer", depth)
    for name in ("head", "keys", "tokens"):
        fields.integer(name)
    fields.text("body", get_args(BodyName))
    fields.number("threshold", 0.0, 1.0)
    for name in ("memory_gate", "jump_mixing"):
        fields.flag(name)
    if fields.values["body"] == "attention" and width % fields.values["head"]:
        raise fields.wrong("head", f"a divisor of dims, {width}")


def _build(described: dict[str, Any]) -> SkipLayer:
    """With a fresh policy, which the saved one replaces; with exits, which fewest layers allow."""
    options = {name: value for name, value in described.items() if name != "kind"}
    return SkipLayer(**options, allow_exit=True)


SKIP_LAYER = NetworkKind(_check, _build)
