"""The options of a run in their groups, each with its meaning: what the policy may do, what compute costs, how long and how fast, what is saved."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from rl_skip.core.dial import GuaranteeKind, checked_tolerance
from rl_skip.core.errors import UserError, positive
from rl_skip.core.features import default_features, find_features, fitted
from rl_skip.core.plugins import absolute_reference
from rl_skip.core.policy import JumpRules, ObservationLayout, PolicyScope
from rl_skip.learning.prices import check_pricing

__all__ = ["CheckpointConfig", "PolicyConfig", "PriceConfig", "ScheduleConfig", "Tune"]

Cost = Literal["flops", "latency"]
Tune = Literal["all", "frozen", "head", "norms", "lora"]
Precision = Literal["no", "bf16", "fp16", "auto"]


@dataclass(frozen=True)
class PolicyConfig:
    """What the policy may do and see. Unless options or the task say otherwise, rows go on to the next layer or leave, answered by a readout
    (readouts, no jumps, a price range of 0.003 to 3). A longest jump, a policy scope of "input", the stack "skip-layer", jumps, no exits, or no
    readouts each ask for the older policy, which jumps over layers in the middle, without readouts unless they are asked for."""

    max_jump: int | None = None
    """Longest jump; setting it brings --jumps. Default: every later layer can be reached; smaller cannot go below a compute of 1 / (jump + 1)."""
    allow_exit: bool = False
    """Lets a jump leave the stack before the last layer, which otherwise always runs."""
    readouts: bool = False
    """Gives the network a head of its own after each layer, with which rows that leave early are answered; implies --allow-exit."""
    readout_rank: int | None = None
    """Makes the readouts adapters of this rank before the network's own head. Default: copies of the head, where they are small, or else adapters of
    rank 16. More answers better and costs more; 4 to 64."""
    readout_attention: bool = True
    """For exits before a head of transformers that is new or reads one token: their mean over the tokens learns where to look; without, it is the
    plain mean. Others, as with --head mean or attention, are as they are."""
    jumps: bool = True
    """Lets the policy jump over layers in the middle; without, a row goes on to the next layer or leaves, which takes --readouts or --allow-exit."""
    policy_scope: PolicyScope = "state"
    """"state" looks at the hidden state after every layer, "input" at the embedded input only."""
    policy_hidden: int = 128
    """Width of the policy's hidden layer. More sees finer differences and costs more at every decision; 32 to 256."""
    feature: tuple[str, ...] = ()
    """What the policy sees besides position, compute and price: hidden, memory; with readouts entropy, largest_probability, margin, agreement,
    moved, answer; or file.py:name for a feature of your own. May be given several times, and replaces the default, so name what of it is to stay: the
    hidden state, and the working memory where the stack has one; with readouts those six, but answer where there are over 16 classes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature", tuple(map(absolute_reference, self.feature)))  # which hold from every folder
        if self.readouts:
            object.__setattr__(self, "allow_exit", True)
        if self.readout_rank is not None and self.readout_rank < 1:
            raise UserError(f"readout_rank must be at least 1, got {self.readout_rank}; set --readout-rank")

    @property
    def readout_plan(self) -> dict[str, Any] | None:
        """What readouts are to be, as `LayerStack.make_readout` takes it; None: as suits the stack."""
        return None if self.readout_rank is None else {"rank": self.readout_rank}

    def rules(
        self, depth: int, width: int, price_range: tuple[float, float], has_memory: bool = False, readout_flops: float = 1.0, classes: int = 0
    ) -> JumpRules:
        """The rules for a stack.

        Args:
            has_memory: whether it has a working memory.
            readout_flops: operations of one of its readouts for one row, where it has some.
            classes: how many classes they tell apart for each row; 0: they answer something else.

        Raises:
            UserError: if a feature is unknown, or there is nothing to decide.
        """
        default = default_features(has_memory, self.readouts and self.policy_scope == "state", classes)
        features = fitted(find_features(self.feature), classes) if self.feature else default
        layout = ObservationLayout(width, depth, *price_range, features, readout_flops if self.readouts else 0.0)
        options = {"allow_exit": self.allow_exit, "scope": self.policy_scope, "hidden": self.policy_hidden, "jumps": self.jumps}
        return JumpRules.reaching(layout, self.max_jump, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PriceConfig:
    """The price λ, in score per unit of relative compute (a share of the full stack's operations). Default: drawn for every row from a range."""

    reward: str = "linear"
    """What an episode earns: linear is score − price · compute; or file.py:name for a reward of your own."""
    price: float | None = None
    """One fixed price λ, in score per unit of relative compute. Higher skips more; 0.01 to 1."""
    price_range: tuple[float, float] = (0.003, 1.0)
    """Range of the price that is drawn for every row, evenly in its logarithm, and shown to the policy. Default: up to 3 where rows go on or leave,
    to 1 where they jump."""
    budget: float | None = None
    """Mean compute allowed, in (0, 1]: the price is controlled until the routes cost that much."""
    cost: Cost = "flops"
    """What compute is a share of: "flops", the operations of all layers; or "latency", the time that they take on this machine, measured before
    training. Where batches are small, decisions take more time than their operations say, and a policy that pays for it decides less."""
    cost_batch: int = 1
    """With --cost latency: rows of the batches whose time is measured. As many as the network will be given at once; 1 to 64."""
    guarantee: float | None = None
    """After training, runs at the smallest compute that loses at most so much score against full depth; 0.01 is one point."""
    guarantee_kind: GuaranteeKind = "confidence"
    """What is promised: "confidence", that the price picked loses no more, 95%; or "expectation", that what is picked loses no more on average over
    draws of validation rows, which takes 99 of them for one point in place of 268, and any score in [0, 1]."""
    budget_price: float = 0.02
    """Start of a controlled price."""
    budget_integral: float = 0.05
    """How far a controlled price moves at each update, in its logarithm, per unit of compute in excess. More oscillates; 0.01 to 0.1."""
    budget_proportional: float = 0.5
    """Proportional response of a controlled price to the present excess. Some damps it; 0 to 2."""
    budget_penalty: float = 0.2
    """Weight of the penalty for a row's squared distance from the budget. More brings every row nearer to it; 0 spends only what pays; 0 to 0.5."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", absolute_reference(self.reward))
        check_pricing(self)
        if self.cost not in get_args(Cost):
            raise UserError(f"a cost is one of {', '.join(get_args(Cost))}, got {self.cost!r}; set --cost")
        if self.cost_batch < 1:
            raise UserError(f"time is measured for batches of at least 1 row, got {self.cost_batch}; set --cost-batch")
        if self.guarantee is not None:
            checked_tolerance(self.guarantee)
        elif self.guarantee_kind != "confidence":
            raise UserError(f"without a tolerance there is no guarantee in {self.guarantee_kind}; set --guarantee, 0.01 for one point")


@dataclass(frozen=True)
class ScheduleConfig:
    """How long and how fast."""

    warmup_epochs: int = 15
    """Passes over the data before exits and policy learn: at full depth and, with jumps, on random routes. What the network is then is the teacher of
    what follows. Without any, runs that jump collapse."""
    epochs: int = 25
    """Passes over the data with network and policy trained together."""
    begin_again: bool = False
    """Sets the network back to what it was given as when the warm-up has ended. What it had become is the teacher, of all baselines too. With
    readouts and without jumps; the learning rate rises and falls once for each part."""
    max_updates: int | None = 7_000
    """Updates that a run makes at most, if neither --epochs nor --warmup-epochs is given: where data are so large that the passes would take more,
    fewer are made, in the same proportion. More takes longer and learns better; 2,000 to 20,000."""
    batch_size: int = 64
    """Inputs of one update, of all processes and passes together."""
    accumulate: int = 1
    """Passes in which each process takes its share of a batch, one after the other, their gradients added up: more need less memory, and the update
    is the same."""
    learning_rate: float = 1e-3
    """Peak learning rate of the network; a short rise, then a cosine down to 1% of it."""
    policy_learning_rate: float = 3e-3
    """Peak learning rate of the policy and its critic, falling to a tenth."""
    weight_decay: float = 0.01
    """Decay of the network's weights (AdamW)."""
    max_grad_norm: float = 1.0
    """Largest norm of a gradient, network and policy each."""
    random_route_weight: float = 1.0
    """With jumps: weight of the loss on random routes in the warm-up. More makes the network more robust to skips; 0 to 1."""
    random_route_keep: float = 0.0
    """Smallest chance that a layer runs on a row's random route; each row draws its own from here to 1. More is milder; 0 to 0.7."""
    full_depth_weight: float = 0.5
    """Weight of the full-depth loss beside the sampled routes. Without it full depth is forgotten; 0 to 1."""
    distillation_weight: float = 1.0
    """Weight of the distillation of full depth, or of the teacher, into routes and exits. More makes short routes better; 0 to 2."""
    exit_weight: float = 0.5
    """With readouts: weight of the loss of each readout beside the last head's, which is 1. More makes early exits better; 0.1 to 1."""
    head_rate: float = 1.0
    """Learning rate of heads and readouts over that of the rest. More lets new heads of a pretrained model settle in time; 1 to 10."""
    precision: Precision = "no"
    """"bf16" multiplies matrices in bfloat16 while the network learns, about twice as fast where the processor knows it, and slower where not; "auto"
    where it does; "fp16" in float16, the loss scaled up so that small gradients are not lost, for GPUs that know no bfloat16; "no" in single
    precision. Weights, losses, policy and all that is measured stay in single precision."""
    eval_epochs: int = 5
    """Passes between two validations; fewer in a run of few epochs, which has ten validations all the same."""
    tune: Tune = "all"
    """What of the network learns: all of it; its head; its norms and head; "lora": adapters in its layers, and its head; "frozen": nothing once the
    policy has started; the warm-up still trains all of it."""

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "epochs", "batch_size", "accumulate", "eval_epochs"):
            if getattr(self, name) < (0 if name == "warmup_epochs" else 1):
                raise UserError(f"{name} is too small: {getattr(self, name)}; set --{name.replace('_', '-')}")
        if self.max_updates is not None and self.max_updates < 1:
            raise UserError(f"a run makes at least 1 update, got {self.max_updates}; set --max-updates")
        if self.tune not in get_args(Tune):
            raise UserError(f"what is tuned is one of {', '.join(get_args(Tune))}, got {self.tune!r}; set --tune")
        if self.precision not in get_args(Precision):
            raise UserError(f"the precision is one of {', '.join(get_args(Precision))}, got {self.precision!r}; set --precision")
        if not 0 <= self.random_route_keep <= 1:
            raise UserError(f"random_route_keep must lie in [0, 1], got {self.random_route_keep}; set --random-route-keep")
        for name in ("learning_rate", "policy_learning_rate", "max_grad_norm", "exit_weight", "head_rate"):
            positive(name, getattr(self, name), f"--{name.replace('_', '-')}")
        for name in ("weight_decay", "random_route_weight", "full_depth_weight", "distillation_weight"):
            positive(name, getattr(self, name), f"--{name.replace('_', '-')}", zero=True)

    def updates(self, rows: int) -> int:
        """Of a run on so many training rows."""
        return (self.warmup_epochs + self.epochs) * max(rows // self.batch_size, 1)

    def suited_to(self, rows: int) -> "ScheduleConfig":
        """With fewer epochs, at least one of each kind, where those that are set take more than `max_updates` on so many training rows."""
        if self.max_updates is None or self.updates(rows) <= self.max_updates:
            return self
        passes = self.max_updates // max(rows // self.batch_size, 1)
        warmup = max(self.warmup_epochs * passes // (self.warmup_epochs + self.epochs), min(self.warmup_epochs, 1))
        return replace(self, warmup_epochs=warmup, epochs=max(passes - warmup, 1))


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run saves its state."""

    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints. One is written at the end, on Ctrl-C and on SIGTERM besides."""
    checkpoint_updates: int | None = None
    """Updates between two checkpoints, whichever comes first. Default: the minutes alone decide."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept, the newest ones."""

    def __post_init__(self) -> None:
        positive("the minutes between checkpoints", self.checkpoint_minutes, "--checkpoint-minutes")
        for name, value in (("checkpoint_updates", self.checkpoint_updates), ("keep_checkpoints", self.keep_checkpoints)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}; set --{name.replace('_', '-')}")
