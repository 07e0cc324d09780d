"""Every option of a training run, with its meaning; `train.py --help` shows these texts."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from agents.settings import flat, read_settings
from rl_skip.errors import UserError
from rl_skip.fields import Fields
from rl_skip.network import NetworkConfig
from rl_skip.policy import JumpRules, ObservationLayout, PolicyScope
from rl_skip.runs import CONFIG, FORMAT_VERSION
from rl_skip.tasks.options import TaskOptions

__all__ = [
    "PRICE_BOUNDS",
    "RIVALS",
    "AgentName",
    "CheckpointConfig",
    "GumbelConfig",
    "PolicyConfig",
    "PpoConfig",
    "PriceConfig",
    "ReinforceConfig",
    "ScheduleConfig",
    "TrainConfig",
    "Tune",
]

FREE_ON_RESUME = ("device", "threads", "task/data")
AgentName = Literal["reinforce", "ppo", "maskable-ppo", "static", "shallow", "gumbel", "exits"]
RIVALS = ("static", "shallow", "gumbel", "exits")
"""The agents that train no policy; they leave a curve to be compared with."""
PRICE_BOUNDS = (0.001, 10.0)
"""The lowest and highest price that a policy for one price, or for one budget, can tell apart."""
ScoreName = Literal["accuracy", "probability"]
Tune = Literal["all", "none", "head", "norms", "lora"]
BaselineName = Literal["value", "leave-one-out"]


def _positive(name: str, value: float, flag: str, zero: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value}; set {flag}")


@dataclass(frozen=True)
class PolicyConfig:
    """What the policy may do and see."""

    max_jump: int | None = None
    """Longest jump. Default: every later layer can be reached; smaller cannot go below a compute of 1 / (jump + 1)."""
    allow_exit: bool = False
    """Lets a jump leave the stack before the last layer, which otherwise always runs."""
    policy_scope: PolicyScope = "state"
    """"state" looks at the hidden state after every layer, "input" at the embedded input only."""
    policy_hidden: int = 128
    """Width of the policy's hidden layer. More sees finer differences and costs more at every decision; 32 to 256."""

    def rules(self, depth: int, width: int, price_range: tuple[float, float]) -> JumpRules:
        """The rules for a stack."""
        layout = ObservationLayout(width, depth, *price_range)
        options = {"allow_exit": self.allow_exit, "scope": self.policy_scope, "hidden": self.policy_hidden}
        return JumpRules.reaching(layout, self.max_jump, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PriceConfig:
    """What a unit of compute costs, in units of score. Default: a price drawn for every row from a range."""

    price: float | None = None
    """One fixed price. Higher skips more; 0.01 to 1."""
    price_range: tuple[float, float] = (0.003, 1.0)
    """Range of the price that is drawn for every row, evenly in its logarithm, and shown to the policy."""
    budget: float | None = None
    """Mean compute allowed, in (0, 1]: the price is steered until the routes cost that much."""
    guarantee: float | None = None
    """After training, runs at the smallest compute whose validation accuracy is below full depth by no more than this, with 95% confidence."""
    budget_price: float = 0.02
    """Where a steered price starts."""
    budget_integral: float = 0.05
    """How far a steered price moves at each update, in its logarithm, per unit of compute in excess. More oscillates; 0.01 to 0.1."""
    budget_proportional: float = 0.5
    """How much a steered price answers the present excess at once. Some calms it; 0 to 2."""
    budget_penalty: float = 0.2
    """What a row pays for its squared distance from the budget. More brings every row nearer to it; 0 spends only what pays; 0 to 0.5."""

    def __post_init__(self) -> None:
        if self.price is not None and self.budget is not None:
            raise UserError("a price and a budget exclude each other; set one of --price and --budget")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(f"a budget is a mean compute in (0, 1], got {self.budget}; set --budget")
        if self.guarantee is not None and not 0 < self.guarantee < 1:
            raise UserError(f"a guarantee is a loss of accuracy in (0, 1), got {self.guarantee}; set --guarantee, 0.01 for one point")
        _positive("the price a budget starts from", self.budget_price, "--budget-price")
        _positive("budget_integral", self.budget_integral, "--budget-integral")
        _positive("budget_proportional", self.budget_proportional, "--budget-proportional", zero=True)
        _positive("budget_penalty", self.budget_penalty, "--budget-penalty", zero=True)
        if self.price is not None:
            _positive("the price", self.price, "--price", zero=True)
        low, high = self.price_range
        _positive("the price range's low end", low, "--price-range")
        _positive("the price range's high end", high, "--price-range")
        if low >= high:
            raise UserError(f"the price range must ascend, got {low} {high}; set --price-range LOW HIGH")

    @property
    def seen_range(self) -> tuple[float, float]:
        """The prices that the policy's observation can tell apart."""
        return self.price_range if self.price is None and self.budget is None else PRICE_BOUNDS


@dataclass(frozen=True)
class ScheduleConfig:
    """How long and how fast."""

    warmup_epochs: int = 15
    """Passes over the data before the policy starts: supervised, at full depth and on random routes. Without any, runs collapse."""
    epochs: int = 25
    """Passes over the data with network and policy trained together."""
    batch_size: int = 64
    """Inputs of one update."""
    learning_rate: float = 1e-3
    """Peak learning rate of the network; a short rise, then a cosine down to 1% of it."""
    policy_learning_rate: float = 3e-3
    """Peak learning rate of the policy and its critic, falling to a tenth."""
    weight_decay: float = 0.01
    """Decay of the network's weights (AdamW)."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are cut, network and policy each."""
    random_route_weight: float = 1.0
    """Weight of the loss on random routes in the warm-up. More makes the network stand skips better; 0 to 1."""
    random_route_keep: float = 0.0
    """Smallest chance that a layer runs on a row's random route; each row draws its own from here to 1. More is milder; 0 to 0.7."""
    full_depth_weight: float = 0.5
    """Weight of the full-depth loss beside the sampled routes. Without it full depth is forgotten; 0 to 1."""
    distillation_weight: float = 1.0
    """Weight of what full depth says, as a lesson for the sampled routes. More makes short routes better; 0 to 2."""
    eval_epochs: int = 5
    """Passes between two validations."""
    tune: Tune = "all"
    """What of the network learns: all of it; its head; its norms and head; "lora": adapters in its layers, and its head; "none": all of it in the
    warm-up, and nothing once the policy has started."""

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "epochs", "batch_size", "eval_epochs"):
            if getattr(self, name) < (0 if name == "warmup_epochs" else 1):
                raise UserError(f"{name} is too small: {getattr(self, name)}; set --{name.replace('_', '-')}")
        if self.tune not in get_args(Tune):
            raise UserError(f"what is tuned is one of {', '.join(get_args(Tune))}, got {self.tune!r}; set --tune")
        if not 0 <= self.random_route_keep <= 1:
            raise UserError(f"random_route_keep must lie in [0, 1], got {self.random_route_keep}; set --random-route-keep")
        for name in ("learning_rate", "policy_learning_rate", "max_grad_norm"):
            _positive(name, getattr(self, name), f"--{name.replace('_', '-')}")
        for name in ("weight_decay", "random_route_weight", "full_depth_weight", "distillation_weight"):
            _positive(name, getattr(self, name), f"--{name.replace('_', '-')}", zero=True)


@dataclass(frozen=True)
class ReinforceConfig:
    """REINFORCE."""

    routes_per_input: int = 4
    """Routes sampled for each input. More lowers the variance of the gradient and costs that many partial forward passes; 2 to 8."""
    baseline: BaselineName = "leave-one-out"
    """"leave-one-out": the mean reward of the input's other routes; "value": a learned critic."""
    score: ScoreName = "accuracy"
    """What the policy is rewarded for: being right, or the probability given to the label."""
    entropy_start: float = 0.1
    """Weight of the entropy bonus at the start. Too low, and the policy freezes on the first route that works; 0.01 to 0.1."""
    entropy_end: float = 0.001
    """Weight of the entropy bonus from four fifths of the run on."""
    value_weight: float = 1.0
    """Weight of the critic's loss."""
    imitation_weight: float = 0.0
    """Weight at the start of imitating random routes that earn more than expected. Finds what is never sampled; needs the critic; 0 to 0.5."""

    def __post_init__(self) -> None:
        if self.routes_per_input < (2 if self.baseline == "leave-one-out" else 1):
            raise UserError(f"a {self.baseline} baseline cannot do with {self.routes_per_input} routes per input; raise --routes-per-input")
        for name in ("entropy_start", "entropy_end", "value_weight"):
            _positive(name, getattr(self, name), f"--{name.replace('_', '-')}")
        if self.imitation_weight > 0 and self.baseline == "leave-one-out":
            raise UserError("imitation compares routes with what a critic expects; set --baseline value, or --imitation-weight 0")
        _positive("imitation_weight", self.imitation_weight, "--imitation-weight", zero=True)


@dataclass(frozen=True)
class PpoConfig:
    """PPO; its rewards, entropy and value weights are those of REINFORCE."""

    num_envs: int = 128
    """Inputs that pass the stack at once while PPO collects. More makes larger batches; 32 to 512."""
    steps: int = 16
    """Decisions of each of them between two trainings of PPO. More steadies the gradient and learns less often; 8 to 64."""
    minibatch: int = 512
    """Decisions of one gradient step of PPO; at most num_envs times steps."""
    passes: int = 4
    """Times that PPO goes over what it collected. More squeezes it harder; 2 to 10."""
    gae_lambda: float = 0.95
    """1 trusts the rewards alone, lower trusts the critic more; 0.9 to 1."""
    clip_range: float = 0.2
    """How far one training may move the policy; 0.1 to 0.3."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "steps", "minibatch", "passes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}; set --{name.replace('_', '-')}")
        if self.num_envs * self.steps % self.minibatch:
            raise UserError(f"{self.num_envs} x {self.steps} decisions do not divide into minibatches of {self.minibatch}; set --minibatch")
        for name in ("gae_lambda", "clip_range"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in (0, 1], got {getattr(self, name)}; set --{name.replace('_', '-')}")


@dataclass(frozen=True)
class GumbelConfig:
    """The rival with a Gumbel gate for each layer."""

    gate_hidden: int = 16
    """Width of a gate's hidden layer. More sees finer differences and costs more at every layer; 16 to 128."""
    gate_temperature: float = 1.0
    """Of the relaxed gates in training. Lower is nearer to hard gates, with a noisier gradient; 0.3 to 2."""
    gate_target_weight: float = 10.0
    """Weight of the squared distance of a batch's mean compute from the budget. More keeps it nearer; 2 to 50."""

    def __post_init__(self) -> None:
        if self.gate_hidden < 1:
            raise UserError(f"a gate's hidden layer needs a width of at least 1, got {self.gate_hidden}; set --gate-hidden")
        for name in ("gate_temperature", "gate_target_weight"):
            _positive(name, getattr(self, name), f"--{name.replace('_', '-')}")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run writes down all that it needs to go on."""

    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints. One is written at the end, on Ctrl-C and on SIGTERM besides."""
    checkpoint_updates: int | None = None
    """Updates between two checkpoints, whichever comes first. Default: the minutes alone decide."""
    keep_checkpoints: int = 3
    """Checkpoints that are kept; the best on validation is kept besides."""

    def __post_init__(self) -> None:
        _positive("the minutes between checkpoints", self.checkpoint_minutes, "--checkpoint-minutes")
        for name, value in (("checkpoint_updates", self.checkpoint_updates), ("keep_checkpoints", self.keep_checkpoints)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}; set --{name.replace('_', '-')}")


@dataclass(frozen=True)
class TrainConfig:
    """Trains a network and its jump policy together."""

    task: str = "digits"
    """digits, hops, hops-16, speech, images, text, language, or file.py:function for a task of your own. Some bring options of their own."""
    data: str | None = None
    """Where the task's data are; digits and hops need none."""
    train_rows: int | None = None
    """Rows to train on, drawn at random but always the same. Default: all."""
    out: str | None = None
    """The run folder. Default: runs/<task>-<agent>-<seed>."""
    overwrite: bool = False
    """Replaces the run folder if it exists."""
    resume: str | None = None
    """A run folder to go on with, exactly where it stood. It keeps its options; only device, threads, data and checkpoints may be set anew."""
    agent: AgentName = "reinforce"
    """Who trains the policy; or one of the rivals that it is compared with: static, shallow, gumbel (each with --budget) and exits."""
    seed: int = 0
    """Seeds everything: same seed, same machine, same result."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    threads: int | None = None
    """CPU threads of PyTorch. Default: 1 for networks narrower than 256, where more mostly wait for one another; else PyTorch's own choice."""
    options: TaskOptions = field(default_factory=TaskOptions)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    pricing: PriceConfig = field(default_factory=PriceConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    reinforce: ReinforceConfig = field(default_factory=ReinforceConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    gumbel: GumbelConfig = field(default_factory=GumbelConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if self.agent not in get_args(AgentName):
            raise UserError(f"an agent is one of {', '.join(get_args(AgentName))}, got {self.agent!r}; set --agent")
        if self.agent in RIVALS:
            self._check_rival()
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UserError(f"the threads must lie in 1..1024, got {self.threads}; set --threads")
        if self.train_rows is not None and self.train_rows < 1:
            raise UserError(f"at least 1 row is needed to train on, got {self.train_rows}; set --train-rows")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed must lie in 0..2^32 - 1, got {self.seed}; set --seed")
        if not self.options.pretrained:  # whose depth the model says
            self.policy.rules(self.network.layers, self.network.width, self.pricing.seen_range)

    def _check_rival(self) -> None:
        for flag, value in (("--price", self.pricing.price), ("--guarantee", self.pricing.guarantee)):
            if value is not None:
                raise UserError(f"the agent {self.agent} trains no policy, which alone has a price; leave {flag} out")
        if self.agent != "exits" and self.pricing.budget is None:
            raise UserError(f"the agent {self.agent} is trained for one compute; set --budget")
        if self.agent == "exits" and self.pricing.budget is not None:
            raise UserError("the agent exits is trained for every compute at once; leave --budget out")

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.resume is not None:
            return Path(self.resume)
        return Path(self.out) if self.out else Path("runs") / f"{self.task_label}-{self.agent}-{self.seed}"

    @property
    def task_label(self) -> str:
        """The task's name in file names: for a task of one's own, its function's."""
        return self.task.rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """What config.json holds."""
        described = asdict(self)
        del described["resume"]
        own = self.task.rpartition(":")[1] == ":"
        task = str(Path(self.task.rpartition(":")[0]).resolve()) + ":" + self.task_label if own else self.task
        described["task"] = {"name": task, "data": None if self.data is None else str(Path(described.pop("data")).resolve())}
        described.pop("data", None)
        model = str(Path(self.options.model).resolve()) if self.options.pretrained else self.options.model
        described["task"]["options"] = {**described.pop("options"), "model": model}
        return {"format_version": FORMAT_VERSION, **described}

    @classmethod
    def from_json(cls, folder: Path | str) -> "TrainConfig":
        """The options of the run in `folder`, with `resume` set to it.

        Raises:
            UserError: if there is no run, or its config.json has a field that is missing, unknown or wrong, by name.
        """
        file = Path(folder) / CONFIG
        if not file.is_file():
            raise UserError(f"{folder} is no run folder, it has no {CONFIG}; name one that train.py wrote with --resume")
        fields = Fields.read(file, FORMAT_VERSION)
        task = fields.object("task")
        given = {"task": task.text("name"), "data": task.text_or_none("data"), "options": TaskOptions.read(task), "resume": str(folder)}
        del fields.values["format_version"]
        return read_settings(cls, fields, given)

    def refuse_changes(self, asked: "TrainConfig") -> None:
        """Raises `UserError` if `asked` differs from these options in one that decides how the run goes on."""
        mine, other = flat(self.to_json()), flat(asked.to_json())
        for path, value in mine.items():
            if value != other[path] and path not in FREE_ON_RESUME and not path.startswith("checkpoints/"):
                flag = "--task" if path == "task/name" else "--" + path.rpartition("/")[2].replace("_", "-")
                advice = f"leave {flag} out, or begin a new run with --out"
                raise UserError(f"the run {self.folder} was begun with {flag} {value}, not {other[path]}; {advice}")
