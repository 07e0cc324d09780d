"""The options that every environment takes, and the core that they describe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from gymnasium.vector import AutoresetMode

from envs.core import Price, Score, SkipCore
from envs.sharing import shared_examples, shared_network
from rl_skip.core.batches import deployed
from rl_skip.core.devices import pick_device
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature, as_feature, default_features, fitted
from rl_skip.core.policy import JumpRules, ObservationLayout, PolicyScope, longest_jump
from rl_skip.core.reward import LINEAR, Reward, as_reward
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.runs import load_run, read_run
from rl_skip.nets.gated import BodyName
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import load_task

__all__ = ["EnvOptions", "ScoreName"]

ScoreName = Literal["accuracy", "probability"]
DEFAULT_PRICE = 0.1


@dataclass(frozen=True)
class EnvOptions:
    """Where the network and its examples come from, and what a jump costs.

    With a `task` alone the network is freshly built and untrained, the same for the same `seed`: good for trying things
    out, and for training it alongside the policy. `run` takes the trained network of a finished run, `stack` one of
    your own.
    """

    task: str | Task | None = None
    """A task's name, "file.py:function", or a `Task`. None: that of the run, or digits."""
    data: str | None = None
    """Where the task's data are. None: where the run found them; digits needs none."""
    run: str | Path | None = None
    """The folder of a finished run, whose network and rules are taken; or "hops-v0", which comes with the package. The environments of a process
    that name one run share its network, as long as its weights are the run's."""
    stack: LayerStack | str | None = None
    """A network of your own, or the kind that is built: "blocks", "skip-layer", or file.py:function for one of your own."""
    examples: Examples | None = None
    """Examples of your own instead of a task's."""
    layers: int | None = None
    """Layers of the network that is built."""
    width: int | None = None
    """Width of the network that is built."""
    heads: int | None = None
    """Attention heads of the network that is built."""
    body: BodyName | None = None
    """What a layer of "skip-layer" computes."""
    price: float | None = None
    """The price λ, in score per unit of relative compute. Higher rewards skipping more; 0.01 to 1. None: the run's, or 0.1."""
    price_range: tuple[float, float] | None = None
    """Instead of one price: each episode draws its own from here, log-uniformly, and sees it."""
    max_jump: int | None = None
    """The longest jump. None: the run's, or the one that reaches every later layer."""
    allow_exit: bool | None = None
    """Whether a jump past the last layer leaves the stack. None: the run's, or no."""
    policy_scope: PolicyScope | None = None
    """Whether "state" after every layer is observed or "input" alone. None: the run's, or "state"."""
    features: Sequence[str | Feature | type[Feature]] | None = None
    """What is observed besides position, compute and price: names, "file.py:name", or features. None: the run's, or what the readouts of the stack
    say; without any the hidden state and, of a stack that has one, the working memory."""
    reward: str | Reward | type[Reward] | None = None
    """What an episode earns: a name, "file.py:name", or a `Reward`. None: the run's, or score − price · compute."""
    score: ScoreName | Score = "accuracy"
    """What the last reward adds: 1 for a right prediction, the label's probability, or (outputs, labels) → (B,) of your own."""
    split: Split = "train"
    """Which of the task's examples are shown."""
    device: str | torch.device | None = None
    """Where everything happens. None: where the given stack is, else the CPU."""
    seed: int | None = None
    """Decides the weights of a network that is built (None: 0), and the episodes until `reset` is given a seed."""
    allow_code: bool = False
    """Whether the Python files that the run names may be run, those of its own task, stack, reward and features."""

    def core(self, num_envs: int, *, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP) -> SkipCore:
        """The environments that these options describe.

        Raises:
            UserError: if options contradict each other, or what they name does not exist.
        """
        self._check()
        model, task = (None, self._task()) if self.run is None else self._trained(self.run)
        stack = self._network(task) if model is None else model.stack
        device = self._device(stack)
        stack = stack.to(device) if self.run is None else shared_network(stack, self.run, device)
        examples = shared_examples(task.load(self.split), device) if self.examples is None else self.examples.to(device)
        named = {"accuracy": task.score, "probability": task.probability}
        core = SkipCore(
            stack,
            self._rules(stack, examples, None if model is None else model.rules),
            examples,
            named[self.score] if isinstance(self.score, str) else self.score,
            num_envs=num_envs,
            price=self._price(DEFAULT_PRICE if model is None else model.price),
            reward=self._reward(),
            seed=self.seed,
            autoreset_mode=autoreset_mode,
        )
        core.named_scores = named
        core.check_price(core.price)
        return core

    def _check(self) -> None:
        built = isinstance(self.stack, str) or (self.stack is None and self.run is None)
        if self.run is not None and self.stack is not None:
            raise UserError("run and stack both name a network; give one of them")
        if not built and any(option is not None for option in (self.layers, self.width, self.heads, self.body)):
            raise UserError("layers, width, heads and body describe a network that is built; leave them out with a run or a stack of your own")
        if self.examples is not None and (self.task is not None or self.data is not None):
            raise UserError("examples and task both say where episodes come from; give one of them")
        if self.examples is not None and built:
            raise UserError("examples of your own need a network that takes them; give stack or run, or a Task instead of examples")
        if self.price is not None and self.price_range is not None:
            raise UserError("price and price_range exclude each other; give one of them")
        if not callable(self.score) and self.score not in get_args(ScoreName):
            raise UserError(f"the score is one of {', '.join(get_args(ScoreName))} or a function, got {self.score!r}; set score")
        if self.split not in get_args(Split):
            raise UserError(f"the split is one of {', '.join(get_args(Split))}, got {self.split!r}; set split")

    def _trained(self, run: str | Path) -> tuple[SkipModel, Task]:
        """The model of a run, and the task that is set, else the run's own."""
        model, task = load_run(run, data=self.data, allow_code=self.allow_code)
        return model, task if self.task is None and self.examples is None else self._task()

    def _task(self) -> Task:
        if self.examples is not None:
            return _task_of(self.examples)
        if isinstance(self.task, Task):
            return self.task
        return load_task(self.task or "digits", self.data)

    def _network(self, task: Task) -> LayerStack:
        if self.stack is not None and not isinstance(self.stack, str):
            return self.stack
        sizes = {"layers": self.layers, "width": self.width, "heads": self.heads, "body": self.body, "stack": self.stack}
        config = NetworkConfig(**{name: value for name, value in sizes.items() if value is not None})  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            return task.build(config)

    def _rules(self, stack: LayerStack, examples: Examples, rules: JumpRules | None) -> JumpRules:
        limits = {"max_jump": self.max_jump, "allow_exit": self.allow_exit, "scope": self.policy_scope}
        chosen: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        if rules is not None and self.max_jump is None and self.allow_exit is False:
            chosen["max_jump"] = min(rules.max_jump, longest_jump(stack.depth, False))
        if self.features is None and rules is not None:
            return replace(rules, **chosen)
        if isinstance(self.features, str):
            raise UserError(f"features is a sequence of features or their names, got {self.features!r}; set features=[{self.features!r}]")
        flops, classes = _known(stack, examples)
        named = fitted(tuple(map(as_feature, self.features or ())), classes)
        if rules is not None:
            return replace(rules, layout=replace(rules.layout, features=named), **chosen)
        sees_readouts = stack.readouts is not None and self.policy_scope != "input"
        features = default_features(stack.has_memory, sees_readouts, classes) if self.features is None else named
        return JumpRules.reaching(ObservationLayout(stack.width, stack.depth, features=features, readout_flops=flops), **chosen)

    def _reward(self) -> Reward:
        if self.reward is not None:
            return as_reward(self.reward)
        return LINEAR if self.run is None else read_run(self.run, allow_code=self.allow_code).reward

    def _price(self, default: float) -> Price:
        if self.price_range is None:
            return default if self.price is None else self.price
        if len(self.price_range) != 2:
            raise UserError(f"a price range is (low, high), got {self.price_range}; set price_range")
        low, high = self.price_range
        return low, high

    def _device(self, stack: LayerStack) -> torch.device:
        if self.device is None:
            first = next(stack.parameters(), None)
            return torch.device("cpu") if first is None else first.device
        return pick_device(self.device)


def _known(stack: LayerStack, examples: Examples) -> tuple[float, int]:
    """Operations of a readout of the stack for one row, and how many classes it tells apart; 0 without."""
    if stack.readouts is None:
        return 0.0, 0
    if len(examples) > 0:  # of none the core says so
        with deployed(stack):
            stack.know_readouts(examples.take(slice(0, 2)).inputs)
    return stack.readouts.flops, stack.readouts.classes


def _task_of(examples: Examples) -> Task:
    """A task with the same examples in every split, for a given network."""

    def embedding(_width: int) -> torch.nn.Module:
        raise UserError("examples do not say how they become tokens; give a stack")

    return Task("examples", (), lambda _split: examples, embedding, tokens=0)
