"""The jump policy: what it sees, which jumps are legal, and the network that chooses."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rl_skip.core.costs import linear_flops
from rl_skip.core.dial import LARGEST_BIAS
from rl_skip.core.errors import UserError
from rl_skip.core.features import ALWAYS, Feature, View, check_features, default_features
from rl_skip.core.plugins import own_code

__all__ = ["JumpPolicy", "JumpRules", "ObservationLayout", "PolicyScope", "legal_jumps", "longest_jump"]

PolicyScope = Literal["state", "input"]
ILLEGAL = -1e9


def longest_jump(depth: int, allow_exit: bool) -> int:
    """The longest jump that means anything: from layer 0 to the last layer, or past it where exits are allowed."""
    return max(depth - 1 if allow_exit else depth - 2, 0)


def legal_jumps(depth: int, max_jump: int, allow_exit: bool) -> Tensor:
    """Which jumps are legal after each layer, (L, J + 1) bool.

    A jump that would pass the last layer ends there, or goes straight to `finish` with `allow_exit`. Of the jumps
    that mean the same only the shortest is legal, so no two legal actions are equivalent.

    Example:
        >>> legal_jumps(4, 2, allow_exit=False).int().tolist()
        [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
        >>> legal_jumps(4, 2, allow_exit=True).int().tolist()
        [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    """
    layer = torch.arange(depth).unsqueeze(1)  # (L, 1)
    jump = torch.arange(max_jump + 1).unsqueeze(0)  # (1, J + 1)
    last_meaningful = (depth - 1 if allow_exit else depth - 2) - layer
    return jump <= last_meaningful.clamp(min=0)


@dataclass(frozen=True)
class ObservationLayout:
    """What the policy sees: one flat float32 vector of named features, the chosen ones and then position (1) · compute (1) · price (1).

    position is i / L after layer i; compute is what the row has spent so far; price is the logarithm of the price, scaled so
    that `price_low` … `price_high` is −1 … 1.

    Raises:
        UserError: if two features have one name.
    """

    width: int
    depth: int
    price_low: float = 0.001
    price_high: float = 10.0
    features: tuple[Feature, ...] = default_features(has_memory=False)
    """Those besides position, compute and price."""
    readout_flops: float = 0.0
    """Operations of a readout for one row, of a stack that has some; 0 without."""

    def __post_init__(self) -> None:
        check_features(self.features)
        if self.reads and not self.readout_flops:
            name = next(part.name for part in self.features if part.reads)
            raise UserError(f"the feature {name!r} looks at what the network would answer, by readouts that it lacks; set --readouts")

    @cached_property
    def parts(self) -> tuple[Feature, ...]:
        """All features, in their order."""
        return (*self.features, *ALWAYS)

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each of `parts` has."""
        return [feature.size(self.width) for feature in self.parts]

    @cached_property
    def size(self) -> int:
        """S, the length of the vector."""
        return sum(self.sizes)

    @cached_property
    def reads(self) -> bool:
        """Whether an observation takes a readout."""
        return any(part.reads for part in self.features)

    @cached_property
    def flops(self) -> float:
        """Operations of making one observation, in matrix products."""
        return sum(feature.flops(self.width) for feature in self.parts) + self.readout_flops * self.reads

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and highest values that it can have, (S,) each."""
        ends = ((*feature.bounds(self.width), size) for feature, size in zip(self.parts, self.sizes, strict=True))
        low, high = zip(*(([low] * size, [high] * size) for low, high, size in ends), strict=True)
        return torch.tensor(sum(low, [])), torch.tensor(sum(high, []))

    def scale_price(self, price: Tensor) -> Tensor:
        """Prices of any shape → [−1, 1]; prices outside the range take its nearest end."""
        low, high = math.log(self.price_low), math.log(self.price_high)
        log_price = price.clamp(self.price_low, self.price_high).log()
        return ((log_price - low) / (high - low) * 2 - 1).clamp(-1, 1)

    def read(self, view: View, known: Mapping[str, Tensor] | None = None) -> Tensor:
        """(R, S), the observation of the rows in view; features in `known`, (R, size) each by name, are not read again."""
        known = known or {}
        parts = [known.get(feature.name) for feature in self.parts]
        read = iter(self._unbounded([feature for feature, part in zip(self.parts, parts, strict=True) if part is None], view))
        values = [next(read) if part is None else part for part in parts]
        if torch.compiler.is_compiling():  # a graph would not know tensors that are kept from elsewhere
            return torch.cat([value.clamp(*feature.bounds(self.width)) for feature, value in zip(self.parts, values, strict=True)], dim=1)
        low, high = self._bounds_on(view.rows.device)
        return torch.cat(values, dim=1).clamp(low, high)

    def read_feature(self, feature: Feature, view: View) -> Tensor:
        """(R, size), one feature within its bounds.

        Raises:
            UserError: if the feature fails, or gives another shape than it says.
        """
        return self._unbounded([feature], view)[0].clamp(*feature.bounds(self.width))

    def _unbounded(self, features: Sequence[Feature], view: View) -> list[Tensor]:
        """(R, size) of each."""
        found: list[Tensor] = []
        try:
            found.extend(feature.read(view).float() for feature in features)
        except Exception:  # a person's own code can fail in any way
            with own_code(f"the feature {features[len(found)].name!r}"):
                raise
        for feature, values in zip(features, found, strict=True):
            expected, given = (view.rows.shape[0], feature.size(self.width)), tuple(values.shape)
            if given != expected:
                raise UserError(f"the feature {feature.name!r} must give {expected} numbers, got shape {given}; mend its read or its size")
        return found

    def _bounds_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`bounds`, made once for each device."""
        if device not in self._bounds:
            low, high = self.bounds()
            self._bounds[device] = low.to(device), high.to(device)
        return self._bounds[device]

    @cached_property
    def _bounds(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def layer_of(self, observation: Tensor) -> Tensor:
        """(R,) long, the layer after which each observation was made."""
        return (observation[:, -len(ALWAYS)] * self.depth).round().long().clamp(0, self.depth - 1)


@dataclass(frozen=True)
class JumpRules:
    """What a policy may do and see; the same for a policy that trains, an environment and a deployed model."""

    layout: ObservationLayout
    max_jump: int
    """J, the longest jump."""
    allow_exit: bool = False
    """Whether a jump past the last layer leaves the stack."""
    scope: PolicyScope = "state"
    """"state" looks at the state after every layer, "input" at the state before layer 0 only."""
    hidden: int = 128
    """Width of the policy's hidden layer: it is what a decision costs."""
    jumps: bool = True
    """Whether rows may jump over layers; without, they go on to the next layer or leave."""

    def __post_init__(self) -> None:
        depth = self.layout.depth
        longest = longest_jump(depth, self.allow_exit)
        if longest < 1:
            raise UserError(f"{depth} layers leave nothing to decide: set --layers to at least {2 if self.allow_exit else 3}")
        if not self.jumps and not self.allow_exit:
            raise UserError("without jumps rows must be allowed to leave; set --allow-exit or --readouts, or leave --no-jumps out")
        if not 1 <= self.max_jump <= longest:
            raise UserError(f"the longest jump must lie in 1..{longest} for {depth} layers, got {self.max_jump}; set --max-jump or --layers")
        if not self.jumps and self.max_jump < longest:
            raise UserError("without jumps rows must be allowed to leave from every layer; leave --max-jump out")
        if self.scope == "input" and self.layout.reads:
            raise UserError("a policy that looks at the input alone sees nothing of what the network would answer; set --feature hidden")
        if self.hidden < 1:
            raise UserError(f"the policy's hidden layer needs a width of at least 1, got {self.hidden}; set --policy-hidden")
        if self.scope not in get_args(PolicyScope):
            raise UserError(f"the policy's scope must be one of {', '.join(get_args(PolicyScope))}, got {self.scope!r}")

    @classmethod
    def reaching(cls, layout: ObservationLayout, max_jump: int | None = None, *, allow_exit: bool = False, **options: Any) -> "JumpRules":
        """Rules whose longest jump is `max_jump`; None: the one that reaches every later layer."""
        longest = max(longest_jump(layout.depth, allow_exit), 1)
        return cls(layout, longest if max_jump is None else max_jump, allow_exit=allow_exit, **options)

    @cached_property
    def legal(self) -> Tensor:
        """(L, J + 1) bool, on the CPU."""
        legal = legal_jumps(self.layout.depth, self.max_jump, self.allow_exit)
        if self.jumps:
            return legal
        layer, jump = torch.arange(len(legal)).unsqueeze(1), torch.arange(legal.shape[1])
        return legal & ((jump == 0) | (jump == self.layout.depth - 1 - layer))

    @cached_property
    def choices(self) -> list[bool]:
        """For each layer, whether more than one jump is legal after it."""
        return [count > 1 for count in self.legal.sum(dim=1).tolist()]

    def next_after(self, layer: int, jump: int) -> int:
        """Where a row goes next by a jump after a layer; L: it leaves. An illegal jump becomes the longest legal one."""
        depth = self.layout.depth
        if not self.jumps:
            return depth if jump > 0 else layer + 1
        return max(min(layer + 1 + jump, depth if self.allow_exit else depth - 1), layer + 1)

    def next_layer(self, position: Tensor | int, jumps: Tensor) -> Tensor:
        """Where rows at `position` go next by `jumps`, (R,) long; the same as `next_after` for each."""
        depth = self.layout.depth
        if not self.jumps:
            return torch.where(jumps > 0, depth, position + 1)
        farthest = depth if self.allow_exit else depth - 1
        if isinstance(position, int):
            return (jumps + (position + 1)).clamp(position + 1, max(farthest, position + 1))
        return torch.maximum((position + 1 + jumps).clamp(max=farthest), position + 1)

    @cached_property
    def decision_flops(self) -> float:
        """Operations of one decision of a `JumpPolicy`: making the observation, and running the policy."""
        return self.layout.flops + linear_flops(self.layout.size, self.hidden) + linear_flops(self.hidden, self.max_jump + 1)


def _seeing(layout: ObservationLayout, hidden: int) -> nn.Linear:
    """Observation → hidden layer; the weights on features that start at zero are zero, and all others as they would be without them."""
    starts = [feature.starts_at_zero for feature, size in zip(layout.parts, layout.sizes, strict=True) for _ in range(size)]
    linear = nn.Linear(len(starts) - sum(starts), hidden)
    if any(starts):
        weight = torch.zeros(hidden, len(starts))
        weight[:, ~torch.tensor(starts)] = linear.weight.data
        linear.weight, linear.in_features = nn.Parameter(weight), len(starts)
    return linear


class JumpPolicy(nn.Module):
    """Observation → logits of the jumps 0 … J, the illegal ones at −1e9.

    The original's policy net D → 128 → J + 1 with a ReLU, reading normalised features and a learned bias per layer.

    Args:
        rules: what the policy may do and see.
        run_bias: added to the initial logit of jump 0. Higher starts nearer to running everything; 0 to 2.
    """

    legal: Tensor

    def __init__(self, rules: JumpRules, *, run_bias: float = 0.0) -> None:
        super().__init__()
        self.rules, layout = rules, rules.layout
        normalised = ((feature.name, size) for feature, size in zip(layout.parts, layout.sizes, strict=True) if feature.normalised)
        self.norms = nn.ModuleDict({name: nn.LayerNorm(size) for name, size in normalised})
        self.fc_in = _seeing(layout, rules.hidden)
        self.layer_bias = nn.Embedding(layout.depth, rules.hidden)
        self.fc_out = nn.Linear(rules.hidden, rules.max_jump + 1)
        nn.init.normal_(self.layer_bias.weight, std=0.1)
        nn.init.normal_(self.fc_out.weight, std=0.01)
        nn.init.zeros_(self.fc_out.bias)
        self.fc_out.bias.data[0] = run_bias
        self.register_buffer("legal", rules.legal.clone(), persistent=False)
        self.compiled: Callable[..., Any] | None = None
        """What looks and decides in the policy's place where no gradient is kept: a `CompiledDecision`."""

    def forward(self, observation: Tensor, layer: int | None = None) -> Tensor:
        """(R, S) → (R, J + 1); `layer` is the one after which all were made, where that is known, and else is read from the observation."""
        layout = self.rules.layout
        seen = observation
        if self.norms:
            parts = zip(layout.parts, observation.split(layout.sizes, dim=1), strict=True)
            seen = torch.cat([self.norms[feature.name](values) if feature.normalised else values for feature, values in parts], dim=1)
        if layer is None:
            each = layout.layer_of(observation)
            bias, legal = self.layer_bias(each), self.legal.index_select(0, each)
        else:
            bias, legal = self.layer_bias.weight[layer], self.legal[layer]
        logits = self.fc_out(torch.relu(self.fc_in(seen) + bias))  # (R, J + 1)
        return logits.masked_fill(~legal, ILLEGAL)

    def likeliest(self, logits: Tensor, price: Tensor) -> Tensor:
        """(R,) long, the likeliest jump of rows with logits (R, J + 1) at prices (R,).

        Below the lowest price that the observation tells apart, the logit of running the next layer is raised by ln(price_low / price):
        the cheaper compute is, the surer the policy must be to skip. A price of 0 is none: the policy does as at the lowest.
        """
        low = self.rules.layout.price_low
        above_0 = torch.where(price > 0, price, low)
        bar = (low / above_0.clamp(low * math.exp(-LARGEST_BIAS), low)).log().clamp(min=0).unsqueeze(1)  # (R, 1)
        return torch.cat([logits[:, :1] + bar, logits[:, 1:]], dim=1).argmax(dim=1)
