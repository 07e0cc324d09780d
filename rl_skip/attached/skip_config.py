"""What a fresh policy learns, in the training loop of whoever has the model."""

from dataclasses import dataclass
from typing import Literal, get_args

from rl_skip.core.errors import UserError, positive
from rl_skip.core.features import Feature, as_feature, default_features, fitted
from rl_skip.core.policy import JumpRules, ObservationLayout
from rl_skip.core.readouts import Readouts
from rl_skip.core.reward import Reward, as_reward
from rl_skip.learning.prices import check_pricing, seen_range

__all__ = ["SkipConfig"]

Score = Literal["accuracy", "probability"]


@dataclass(frozen=True)
class SkipConfig:
    """How a fresh policy learns when rows go on to the next layer and when they leave; `rl_skip.attach(model, SkipConfig(budget=0.5))`.

    Without a price and a budget the price of compute is drawn for every row, so that one training learns the whole trade-off, and
    `handle.budget` can be set to any compute once `handle.calibrate` was called.

    Raises:
        UserError: naming the field, its value and what was expected.

    Example:
        >>> SkipConfig(budget=0.5).exit_weight
        0.5
        >>> SkipConfig(budget=50)
        Traceback (most recent call last):
        rl_skip.core.errors.UserError: a budget is a mean compute in (0, 1], 0.001 at the least, got 50; set --budget, or budget=
    """

    budget: float | None = None
    """Mean compute allowed, in (0, 1]: the price is steered until the rows spend that much."""
    price: float | None = None
    """One fixed price λ, in score per unit of relative compute. Higher leaves earlier; 0.01 to 1."""
    price_range: tuple[float, float] = (0.003, 3.0)
    """Where neither is given: from where to where a price is drawn for every row, evenly in its logarithm, and shown to the policy."""
    updates: int | None = None
    """How many calls of `handle.loss` the training will make, over which the entropy bonus falls. Default: it stays at the ends' geometric mean."""
    exit_weight: float = 0.5
    """Weight of the loss of each readout beside the last head's, which is 1. More makes early exits better; 0.1 to 1."""
    distillation_weight: float = 1.0
    """Weight of what the teacher says, beside the labels. The teacher of the readouts is the model's own full depth, unless `handle.loss` is given
    `teacher_logits`. More makes early exits better; 0 to 2."""
    head_rate: float = 10.0
    """In `handle.parameter_groups`: learning rate of head and readouts over that of the rest; 1 to 10."""
    policy_learning_rate: float = 3e-3
    """In `handle.parameter_groups`, and in `handle.calibrate`: learning rate of the policy."""
    policy_epochs: int = 60
    """In `handle.calibrate`: passes of the policy alone over what the trained model says of the rows to learn from; they take seconds."""
    score: Score = "accuracy"
    """What the policy is rewarded for: 1 for a right prediction and 0 for a wrong one, or the probability of the label."""
    reward: Reward | str = "linear"
    """What a row earns: linear is score − price · compute; or a `Reward` of your own."""
    readout_rank: int | None = None
    """Makes the readouts adapters of this rank before the model's own head. Default: copies of the head where they are small and it reads more than
    one token; of a head that reads one, adapters that know the mean over the tokens; else adapters."""
    fresh_head: bool | None = None
    """Whether the head has yet to be learned: then there is nothing to copy, and the readouts are adapters before it that know the mean over the
    tokens; False: copies in any case. Default: whether `from_pretrained` made it anew."""
    features: tuple[Feature | str, ...] = ()
    """What the policy sees besides position, compute and price. Default: what the readouts would answer, and how far the hidden state has moved."""
    policy_hidden: int = 128
    """Width of the policy's hidden layer; 32 to 256."""
    entropy_start: float = 0.1
    """Weight of the entropy bonus at the start. Too low, and the policy freezes on the first exit that works; 0.01 to 0.1."""
    entropy_end: float = 0.001
    """Weight of the entropy bonus from four fifths of the updates on."""
    budget_price: float = 0.02
    """Start of a steered price."""
    budget_integral: float = 0.05
    """How far a steered price moves at each update, in its logarithm, per unit of compute in excess. More oscillates; 0.01 to 0.1."""
    budget_proportional: float = 0.5
    """Proportional response of a steered price to the present excess. Some damps it; 0 to 2."""
    budget_penalty: float = 0.2
    """Weight of the penalty for a row's squared distance from the budget. More brings every row nearer to it; 0 to 0.5."""

    def __post_init__(self) -> None:
        check_pricing(self)
        for name in ("exit_weight", "head_rate", "policy_learning_rate", "entropy_start", "entropy_end"):
            positive(name, getattr(self, name), f"{name}=")
        positive("distillation_weight", self.distillation_weight, "distillation_weight=", zero=True)
        least = {"policy_epochs": 0, "policy_hidden": 1, "updates": 1, "readout_rank": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UserError(f"{name} must be at least {smallest}, got {value}; set {name}=")
        if self.score not in get_args(Score):
            raise UserError(f"the score is one of {', '.join(get_args(Score))}, got {self.score!r}; set score=")
        object.__setattr__(self, "reward", as_reward(self.reward))
        object.__setattr__(self, "features", tuple(map(as_feature, self.features)))
        for feature in self._features:
            if not feature.at_once:
                raise UserError(f"the feature {feature.name!r} is read layer by layer, and here all layers at once: take one with at_once = True")

    @property
    def _features(self) -> tuple[Feature, ...]:
        return tuple(map(as_feature, self.features))

    def rules(self, depth: int, width: int, readouts: Readouts) -> JumpRules:
        """The rules of the policy for L = `depth` layers of width D, with readouts that were counted."""
        features = fitted(self._features, readouts.classes) or default_features(has_memory=False, has_readouts=True, classes=readouts.classes)
        layout = ObservationLayout(width, depth, *seen_range(self), features, readouts.flops)
        return JumpRules.reaching(layout, allow_exit=True, hidden=self.policy_hidden, jumps=False)
