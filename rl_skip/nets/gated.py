"""The layers of the original module as a stack: memory gates, working memory, jump weights, closing MLP."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rl_skip.core.costs import attention_block_flops, linear_flops
from rl_skip.core.inputs import Inputs
from rl_skip.core.means import masked_mean
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.nets.blocks import AttentionBlock

__all__ = ["AdapterBody", "AttentionBody", "Body", "BodyName", "GatedStack", "HeadedStack", "MemoryGate", "straight_through"]

BodyName = Literal["adapter", "attention"]
CLIP = 1.0


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score: Tensor, threshold: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward((score - threshold).abs() <= CLIP)
        return (score > threshold).to(score.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (near,) = ctx.saved_tensors
        return gradient * near, None


def straight_through(score: Tensor, threshold: Tensor) -> Tensor:
    """1 where score > threshold, else 0; the gradient goes to the score where it lies within 1 of the threshold.

    The clipped straight-through estimator (Hubara et al. 2016). Without the clip, training falls apart.
    """
    result: Tensor = _StraightThrough.apply(score, threshold)
    return result


class MemoryGate(nn.Module):
    """Decides for each token whether a layer is worth computing on it.

    The token is compared with M learned keys, whose softmax at 1/√D weighs M learned values; an MLP looks at the token
    itself; a 2 → 1 linear joins the two into a score, and the token is active where the score exceeds the threshold.
    Scores start at 1, so that every token is active at first: an inactive token teaches its gate nothing.
    """

    threshold: Tensor

    def __init__(self, width: int, keys: int = 64, threshold: float = 0.5) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(keys, width))
        self.values = nn.Parameter(torch.randn(keys, 1))
        self.mlp = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))
        self.join = nn.Linear(2, 1)
        nn.init.ones_(self.join.bias)
        self.register_buffer("threshold", torch.tensor(threshold))

    @property
    def flops(self) -> int:
        """Operations for one token."""
        keys, width = self.keys.shape
        return linear_flops(width, keys) + linear_flops(keys, 1) + linear_flops(width, width // 2) + linear_flops(width // 2, 1) + linear_flops(2, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) → (...), 1 where a token is active and 0 where not, with the straight-through gradient."""
        likeness = normalize(hidden, dim=-1) @ normalize(self.keys, dim=-1).T  # (..., M)
        recalled = torch.softmax(likeness / math.sqrt(hidden.shape[-1]), dim=-1) @ self.values  # (..., 1)
        score = self.join(torch.cat([recalled, self.mlp(hidden)], dim=-1)).squeeze(-1)
        return straight_through(score, self.threshold)


class Body(nn.Module):
    """What a gated layer computes on its active tokens. Subclass it to put your own between the gates.

    `per_token` says that tokens do not look at each other: they then arrive as one long row without padding.
    """

    per_token: bool = False

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(R, T, D), of which `mask` (R, T) names the active tokens → what to add, (R, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward")

    def flops(self, tokens: Tensor) -> Tensor:
        """Operations for rows with that many active tokens, (R,) → (R,)."""
        raise NotImplementedError(f"{type(self).__name__} must implement flops")


class AdapterBody(Body):
    """The original's body: gate(LN x) · adapter(LN x), where only even layers have the adapter D → D."""

    per_token = True

    def __init__(self, width: int, adapter: bool) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 1)
        self.adapter = nn.Linear(width, width) if adapter else None
        self.token_flops = linear_flops(width, 1) + (linear_flops(width, width) if adapter else 0)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm(hidden)
        return torch.sigmoid(self.gate(normed)) * (normed if self.adapter is None else self.adapter(normed))

    def flops(self, tokens: Tensor) -> Tensor:
        return tokens * self.token_flops


class AttentionBody(Body):
    """gate(LN x) · what a pre-norm attention block adds; active tokens attend to active tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 1)
        self.block = AttentionBlock(width, heads)
        self.width = width

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return torch.sigmoid(self.gate(self.norm(hidden))) * self.block.update(hidden, mask)

    def flops(self, tokens: Tensor) -> Tensor:
        return tokens * linear_flops(self.width, 1) + attention_block_flops(tokens, self.width)


class GatedStack(LayerStack):
    """The layers of the original module as a stack: memory gates, working memory, jump weights, closing MLP.

    Args:
        dims: D.
        head: attention heads of the attention body.
        layer: L.
        body: "adapter" (the original's), "attention", or a function layer → `Body`.
        keys: M, learned keys of each memory gate.
        threshold: score above which a token is active. Higher computes fewer tokens; 0 to 1.
        memory_gate: without it every token is active.
        jump_mixing: without it a jump leaves the hidden state as it is.
        tokens: T, the length for which `layer_costs` is quoted; the cost of a row follows the real length.
    """

    has_memory = True

    def __init__(
        self,
        dims: int,
        head: int,
        layer: int,
        *,
        body: BodyName | Callable[[int], Body] = "adapter",
        keys: int = 64,
        threshold: float = 0.5,
        memory_gate: bool = True,
        jump_mixing: bool = True,
        tokens: int = 1,
    ) -> None:
        super().__init__()
        self.depth, self.width = layer, dims
        if not callable(body) and body not in get_args(BodyName):
            raise ValueError(f"a body is one of {', '.join(get_args(BodyName))} or a function layer → Body, got {body!r}; set body=")
        make = body if callable(body) else (lambda i: AdapterBody(dims, i % 2 == 0)) if body == "adapter" else (lambda i: AttentionBody(dims, head))
        self.bodies = nn.ModuleList(make(i) for i in range(layer))
        self.gates = nn.ModuleList(MemoryGate(dims, keys, threshold) for _ in range(layer)) if memory_gate else None
        self.first_memory = nn.Parameter(torch.zeros(1, 1, dims))
        self.memory_gate = nn.Linear(dims, 1)
        self.jump_weights = nn.Parameter(torch.tensor([0.1, 0.05, 0.01])) if jump_mixing else None
        self.close_gate, self.close_norm = nn.Linear(dims, 1), nn.LayerNorm(dims)
        self.close_mlp = nn.Sequential(nn.Linear(dims, 4 * dims), nn.GELU(), nn.Linear(4 * dims, dims))
        self.register_buffer("layer_flops", self._body_flops(tokens), persistent=False)

    def _body_flops(self, tokens: int) -> Tensor:
        length = torch.tensor([float(tokens)])
        return torch.cat([body.flops(length) for body in self._typed_bodies()])

    def _typed_bodies(self) -> list[Body]:
        return [body for body in self.bodies if isinstance(body, Body)]

    def begin(self, inputs: Inputs) -> Carry:
        """Takes x (B, T, D), or {"x": x, "mask": (B, T)}."""
        hidden, mask = (inputs, None) if isinstance(inputs, Tensor) else (inputs["x"], inputs.get("mask"))
        B, T, _ = hidden.shape
        mask = None if mask is None else mask.bool()
        tokens = torch.full((B,), float(T), device=hidden.device) if mask is None else mask.sum(dim=1).clamp(min=1).float()
        full_flops = torch.stack([body.flops(tokens) for body in self._typed_bodies()]).sum(dim=0)  # (B,), of real tokens
        memory = self.first_memory.expand(B, -1, -1)
        return Carry(hidden=hidden, full_flops=full_flops, mask=mask, origin=hidden, memory=memory)

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        body = self.bodies[i]
        assert isinstance(body, Body) and carry.memory is not None
        chosen = carry if rows is None else replace(carry, origin=None).take(rows)
        assert chosen.memory is not None
        R, T, D = chosen.hidden.shape
        tokens = torch.full((R,), float(T), device=chosen.hidden.device) if chosen.mask is None else chosen.mask.sum(dim=1).float()
        flops, opened, active = torch.full_like(tokens, linear_flops(D, 1)), None, chosen.mask
        if self.gates is not None:
            gate = self.gates[i]
            assert isinstance(gate, MemoryGate)
            opened = _on_real_tokens(gate, chosen.hidden, chosen.mask)  # (R, T), with gradient
            active = opened.bool()
            flops = flops + tokens * gate.flops
            tokens = active.sum(dim=1).float()
        chosen.hidden = _on_active_tokens(body, chosen.hidden, active, opened)
        seen = masked_mean(chosen.hidden, chosen.mask).unsqueeze(1)  # (R, 1, D)
        keep = torch.sigmoid(self.memory_gate(seen))
        chosen.memory = keep * chosen.memory + (1 - keep) * seen
        if rows is not None:
            assert carry.memory is not None
            carry.hidden = carry.hidden.index_copy(0, rows, chosen.hidden.to(carry.hidden.dtype))
            carry.memory = carry.memory.index_copy(0, rows, chosen.memory.to(carry.memory.dtype))
        return (body.flops(tokens) + flops) / chosen.full_flops

    def on_jump(self, carry: Carry, rows: Tensor, jumps: Tensor) -> None:
        """A jump of a ≥ 1: x ← x + w_a · x_in + (1 − w_a) · m."""
        if self.jump_weights is None:
            return
        away = (jumps > 0).nonzero().squeeze(1)
        if away.shape[0] == 0:
            return
        rows, jumps = rows[away], jumps[away]
        assert carry.origin is not None and carry.memory is not None
        weight = self.jump_weights[(jumps - 1).clamp(max=len(self.jump_weights) - 1)].view(-1, 1, 1)
        mixed = weight * carry.origin.index_select(0, rows) + (1 - weight) * carry.memory.index_select(0, rows)
        carry.hidden = carry.hidden.index_copy(0, rows, carry.hidden.index_select(0, rows) + mixed)

    def finish(self, carry: Carry) -> Tensor:
        x = carry.hidden
        return x + torch.sigmoid(self.close_gate(x)) * self.close_mlp(self.close_norm(x))

    def keep(self, layers: Sequence[int]) -> "GatedStack":
        self.bodies = nn.ModuleList(self.bodies[i] for i in layers)
        self.gates = None if self.gates is None else nn.ModuleList(self.gates[i] for i in layers)
        self.layer_flops, self.depth = self.layer_flops[list(layers)], len(layers)
        return self


def _on_real_tokens(gate: MemoryGate, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The gate's outputs for (R, T, D), 0 at padding, (R, T)."""
    if mask is None:
        return gate(hidden)
    opened = gate(hidden[mask])  # (N,)
    return opened.new_zeros(mask.shape).masked_scatter(mask, opened)


def _on_active_tokens(body: Body, hidden: Tensor, active: Tensor | None, opened: Tensor | None) -> Tensor:
    """hidden (R, T, D) + the body's update on the active tokens alone; `opened` (R, T) carries the gate's gradient."""
    if active is None or (not body.per_token and bool(active.all())):
        update = body(hidden, active)
        return hidden + (update if opened is None else update * opened.unsqueeze(-1))
    R, T, D = hidden.shape
    if body.per_token:
        tokens = active.flatten().nonzero().squeeze(1)  # (N,)
        if tokens.shape[0] == 0:
            return hidden
        flat = hidden.reshape(R * T, D)
        chosen = flat.index_select(0, tokens)
        update = body(chosen.unsqueeze(0), None).squeeze(0)
        if opened is not None:
            update = update * opened.flatten().index_select(0, tokens).unsqueeze(-1)
        return flat.index_copy(0, tokens, chosen + update).view(R, T, D)
    lengths = active.sum(dim=1)
    longest = int(lengths.max())
    if longest == 0:
        return hidden
    order = active.long().argsort(dim=1, descending=True, stable=True)[:, :longest]  # (R, longest), active ones first
    packed_mask = torch.arange(longest, device=hidden.device) < lengths.unsqueeze(1)
    where = order.unsqueeze(-1).expand(-1, -1, D)
    packed = hidden.gather(1, where)
    update = body(packed, packed_mask) * packed_mask.unsqueeze(-1)
    if opened is not None:
        update = update * opened.gather(1, order).unsqueeze(-1)
    return hidden.scatter(1, where, packed + update)


class HeadedStack(LayerStack):
    """A gated stack between an embedding and a head: the same contract, on a task's own inputs."""

    def __init__(self, embed: nn.Module, trunk: GatedStack, head: nn.Module) -> None:
        super().__init__()
        self.embed, self.trunk, self.head = embed, trunk, head
        self.depth, self.width, self.has_memory = trunk.depth, trunk.width, trunk.has_memory

    @property
    def layer_flops(self) -> Tensor:  # type: ignore[override]
        return self.trunk.layer_flops

    def begin(self, inputs: Inputs) -> Carry:
        embedded = self.embed(inputs)
        return self.trunk.begin({"x": embedded[0], "mask": embedded[1]} if isinstance(embedded, tuple) else embedded)

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        return self.trunk.run(i, carry, rows)

    def on_jump(self, carry: Carry, rows: Tensor, jumps: Tensor) -> None:
        self.trunk.on_jump(carry, rows, jumps)

    def finish(self, carry: Carry) -> Tensor:
        return self.head(self.trunk.finish(carry), carry.mask)

    def readout(self) -> nn.Module:
        return self.head

    def keep(self, layers: Sequence[int]) -> "HeadedStack":
        self.depth = self.trunk.keep(layers).depth
        return self
