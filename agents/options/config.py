"""Every option of a training run, with its meaning; `train.py --help` shows these texts."""

import reprlib
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.agent import AGENTS, Agent, AgentConfig, find_agent
from agents.options.groups import CheckpointConfig, PolicyConfig, PriceConfig, ScheduleConfig, Tune
from rl_skip.core.bounded import MOST_WIDTH
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields, flat, read_dataclass
from rl_skip.core.plugins import absolute_reference, is_own, label_of, refuse_code
from rl_skip.core.seal import check_sealed, is_sealed
from rl_skip.learning.prices import seen_range
from rl_skip.measure.runs import CONFIG, FORMAT_VERSION, TRAIN_ANEW, references_of
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks.options import TaskOptions, read_task_options
from rl_skip.tasks.shipped import is_shipped

__all__ = ["CheckpointConfig", "PolicyConfig", "PriceConfig", "ScheduleConfig", "TrainConfig", "Tune"]

FREE_ON_RESUME = ("device", "threads", "task/data")
FIXED = ("task", "data", "out", "overwrite", "resume", "allow_code", "agent")
"""What a task's defaults cannot set: the task itself, the agent, and where the run goes."""
MOST, MOST_THREADS = 10**9, 256
MOST_OF = {
    "batch_size": 2**20,
    "policy_hidden": MOST_WIDTH,
    "readout_rank": MOST_WIDTH,
    "gate_hidden": MOST_WIDTH,
    "max_tokens": 2**20,
    "routes_per_input": 1024,
    "keep_checkpoints": 10_000,
    "learning_rate": 100,
    "policy_learning_rate": 100,
}
"""Of numbers that decide how much memory is taken, or above which nothing is learned; of others `MOST`."""
BEFORE, SCHEDULE_BEFORE = {"processes": 1, "shard": False}, {"max_updates": None, "accumulate": 1, "begin_again": False}
"""Options that runs of before did not know, and what they did."""
BUDGET_ALONE = ("budget_price", "budget_integral", "budget_proportional", "budget_penalty")


@dataclass(frozen=True)
class TrainConfig:
    """Trains a network and its policy together."""

    task: str = "digits"
    """digits, hops, hops-16, speech, images, text, language, or file.py:function for a task of your own. Some bring options of their own."""
    data: str | None = None
    """Where the task's data are, or banking77, which comes along, for text; a file or folder of that name wins. Digits and hops need none."""
    train_rows: int | None = None
    """Rows to train on, drawn at random but always the same. Default: all."""
    out: str | None = None
    """The run folder. Default: runs/<task>-<agent>-<seed>."""
    overwrite: bool = False
    """Replaces the run folder if it exists."""
    resume: str | None = None
    """A run folder to go on with, exactly where it stood. It keeps its options; only device, threads, data and checkpoints may be set anew."""
    allow_code: bool = False
    """With --resume: runs the Python files that the run names, those of a task, stack, agent, reward or feature of one's own. Read them before, if
    the run is not yours."""
    agent: str = "reinforce"
    """What trains the policy: reinforce, ppo or maskable-ppo; or one of the baselines that it is compared with: static, shallow, gumbel (each with
    --budget) and exits; or file.py:name for an agent of your own. Each has options of its own: --agent ppo --help shows those of PPO."""
    seed: int = 0
    """Seeds everything: same seed, same machine, same result."""
    shard: bool = False
    """In several processes: splits the weights of the network, and what its optimiser keeps of them, over all (FSDP2), for a model that one device
    does not hold. For --task text and language, of a policy that can but leave, the default."""
    processes: Annotated[int, tyro.conf.Suppress] = 1
    """That train together; the launcher says how many."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    threads: int | None = None
    """CPU threads of PyTorch. Default: 1 for networks narrower than 256, where more mostly wait for one another; else PyTorch's own choice."""
    options: TaskOptions = field(default_factory=TaskOptions)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    pricing: PriceConfig = field(default_factory=PriceConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    agent_config: AgentConfig = AgentConfig()
    """The agent's own options."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        kind = self.agent_class
        if type(self.agent_config) is AgentConfig:
            object.__setattr__(self, "agent_config", kind.config_class())
        if type(self.agent_config) is not kind.config_class:
            raise UserError(f"the agent {self.agent} takes {kind.config_class.__name__}, not {type(self.agent_config).__name__}; set --agent")
        parts = [option.name for part in vars(self).values() if is_dataclass(part) for option in fields_of(part)]
        if twice := next((option.name for option in fields_of(self.agent_config) if parts.count(option.name) > 1), None):
            raise UserError(f"the agent {self.agent} has an option {twice!r}, which there is already; call it by another name")
        self._check_sizes()
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UserError(f"the threads must lie in 1..{MOST_THREADS}, got {self.threads}; set --threads")
        if self.train_rows is not None and self.train_rows < 1:
            raise UserError(f"at least 1 row is needed to train on, got {self.train_rows}; set --train-rows")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed must lie in 0..2^32 - 1, got {self.seed}; set --seed")
        if not self.options.pretrained:  # whose depth the model says
            self.policy.rules(self.network.layers, self.network.width, seen_range(self.pricing))

    def _check_sizes(self) -> None:
        """Refuses numbers beyond those that a run could use."""
        for part in (self, *(part for part in vars(self).values() if is_dataclass(part))):
            for name, value in vars(part).items():
                most = MOST_OF.get(name, MOST)
                if isinstance(value, int | float) and name != "seed" and not abs(value) <= most:
                    raise UserError(f"{name} must be at most {most:,}, got {reprlib.repr(value)}; set --{name.replace('_', '-')}")

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raises `UserError` for an option that is given beside others that leave nothing for it to do.

        Args:
            given: the options that are given, by their names with underscores.
        """
        pricing, policy = self.pricing, self.policy
        drawn = pricing.price is None and pricing.budget is None
        for idle, names, reason in (
            (not drawn, ("price_range",), "the price is not drawn beside --price or --budget"),
            (pricing.budget is None, BUDGET_ALONE, "the price is not controlled without --budget"),
            (policy.jumps, ("begin_again",), "the warm-up teaches the network routes, too"),
            (not policy.readouts, ("readout_rank", "readout_attention", "exit_weight", "begin_again"), "there are no readouts"),
            (self.schedule.warmup_epochs == 0, ("begin_again",), "there is no warm-up"),
            (self.schedule.distillation_weight == 0, ("begin_again",), "without --distillation-weight nothing learns from a teacher"),
            (self.schedule.tune == "frozen", ("begin_again",), "with --tune frozen nothing learns after the warm-up"),
            (not policy.jumps, ("random_route_weight", "random_route_keep"), "there are no random routes without --jumps"),
            (self.network.stack == "blocks", ("body",), "a body is that of --stack skip-layer"),
            (self.resume is None, ("allow_code",), "it allows what a run names that --resume goes on with"),
        ):
            if idle and (name := next((name for name in names if name in given), None)) is not None:
                raise UserError(f"--{name.replace('_', '-')} does nothing here: {reason}; leave it out")

    def check_prices(self) -> None:
        """Raises `UserError` if the agent cannot be trained for the prices, or for the budget, that are set."""
        kind = self.agent_class
        if kind.trained_for == "a price":
            return
        for flag, value in (("--price", self.pricing.price), ("--guarantee", self.pricing.guarantee)):
            if value is not None:
                raise UserError(f"the agent {self.agent} trains no policy, which alone has a price; leave {flag} out")
        if kind.trained_for == "one budget" and self.pricing.budget is None:
            raise UserError(f"the agent {self.agent} is trained for one compute; set --budget")
        if kind.trained_for == "every budget" and self.pricing.budget is not None:
            raise UserError(f"the agent {self.agent} is trained for every compute at once; leave --budget out")

    @property
    def agent_class(self) -> type[Agent]:
        """The agent that is named."""
        return find_agent(self.agent)

    @property
    def begins_again(self) -> bool:
        """Whether the network begins again as it was given where the warm-up ends, and its teacher is what it was then."""
        schedule, policy = self.schedule, self.policy
        taught = schedule.warmup_epochs > 0 and schedule.distillation_weight > 0 and schedule.tune != "frozen"
        return schedule.begin_again and taught and policy.readouts and not policy.jumps

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.resume is not None:
            return Path(self.resume)
        return Path(self.out) if self.out else Path("runs") / f"{label_of(self.task)}-{label_of(self.agent)}-{self.seed}"

    @property
    def resume_command(self) -> str:
        """What goes on with the run, in as many processes."""
        command = "python" if self.processes == 1 else f"torchrun --nproc_per_node {self.processes}"
        named = (self.task, self.network.stack, self.agent, self.pricing.reward, *self.policy.feature)
        return f"{command} train.py --resume {shlex.quote(str(self.folder))}{' --allow-code' if any(map(is_own, named)) else ''}"

    def with_defaults(self, defaults: Mapping[str, Any], source: str) -> "TrainConfig":
        """These options with others in place of some, by their names on the command line, with underscores.

        Options of another agent are left out.

        Args:
            source: whose defaults they are, for messages.

        Raises:
            UserError: if no option has the name, or it does not take the value.
        """
        groups: dict[str, Any] = {name: group for name, group in vars(self).items() if is_dataclass(group)}
        homes = {option.name: name for name, group in groups.items() for option in fields_of(group)}
        elsewhere = {option.name for name in AGENTS.names() for option in fields_of(AGENTS.find(name).config_class)}
        changed: dict[str, dict[str, Any]] = {}
        own: dict[str, Any] = {}
        for name, value in defaults.items():
            if name in homes:
                changed.setdefault(homes[name], {})[name] = value
            elif name in vars(self) and name not in FIXED and name not in groups:
                own[name] = value
            elif name not in elsewhere:
                raise UserError(f"{source}: {name!r} is no option that a task can set; python train.py --help lists them")
        for name, values in changed.items():
            described = Fields({option.name: getattr(groups[name], option.name) for option in fields_of(groups[name])} | values, source)
            own[name] = read_dataclass(type(groups[name]), described)
        return replace(self, **own)

    def to_json(self) -> dict[str, Any]:
        """What config.json holds."""
        described = asdict(self)
        del described["resume"], described["allow_code"]
        data = described.pop("data")
        described["agent"] = absolute_reference(self.agent)
        model = self.options.model
        options = {**described.pop("options"), "model": str(Path(model).resolve()) if self.options.pretrained and Path(model).is_dir() else model}
        place = data if data is None or is_shipped(data) else str(Path(data).resolve())
        described["task"] = {"name": absolute_reference(self.task), "data": place, "options": options}
        return {"format_version": FORMAT_VERSION, **described}

    @classmethod
    def from_json(cls, folder: Path | str, allow_code: bool = False) -> "TrainConfig":
        """The options of the run in `folder`, with `resume` set to it.

        Args:
            allow_code: whether the Python files that the run names may be run.

        Raises:
            UserError: if there is no run, it names code that is not allowed, it is of an older version, or its config.json has a field
                that is missing, unknown or wrong, by name.
        """
        file = Path(folder) / CONFIG
        if not file.is_file():
            raise UserError(f"{str(folder) or 'an empty name'} is no run folder, it has no {CONFIG}; name one that train.py wrote with --resume")
        fields = Fields.read(file, FORMAT_VERSION, oldest=FORMAT_VERSION, anew=TRAIN_ANEW)
        if is_sealed(file.parent):
            check_sealed(file.parent, CONFIG)
        refuse_code(references_of(fields), file, allow_code)
        del fields.values["format_version"]
        task = fields.object("task")
        options = read_task_options(task.object("options"))
        try:
            config_class = find_agent(fields.text("agent")).config_class
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        agent_config = read_dataclass(config_class, fields.object("agent_config"))
        schedule = fields.object("schedule")
        schedule.values, fields.values = SCHEDULE_BEFORE | schedule.values, BEFORE | fields.values
        fields.object("policy").values.setdefault("readout_attention", False)
        pricing = fields.object("pricing")
        given = {
            "task": task.text("name"),
            "data": task.text_or_none("data"),
            "schedule": read_dataclass(ScheduleConfig, schedule),
            "pricing": read_dataclass(PriceConfig, pricing, may_lack=("cost", "cost_batch")),
            "options": options,
            "resume": str(folder),
            "allow_code": allow_code,
            "agent_config": agent_config,
        }
        return read_dataclass(cls, fields, given)

    def refuse_changes(self, changed: "TrainConfig", only: str = "") -> None:
        """Raises `UserError` if `changed` differs from these options in one that decides how the run goes on; `only` names the one to compare."""
        begun, wanted = flat(self.to_json()), flat(changed.to_json())
        for path, value in begun.items():
            if only in ("", path) and value != wanted.get(path) and path not in FREE_ON_RESUME and not path.startswith("checkpoints/"):
                flag = "--task" if path == "task/name" else "--" + path.rpartition("/")[2].replace("_", "-")
                advice = f"leave {flag} out, or begin a new run with --out"
                raise UserError(f"the run {self.folder} was begun with {flag} {value}, not {wanted.get(path)}; {advice}")
