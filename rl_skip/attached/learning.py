"""A policy that learns while it is attached: in the training loop of whoever has the model, on the calls that they make anyway.

In training mode a call runs all layers on all rows, each readout answers after its layer, and the policy observes, as in `exit_pass`.
What that pass shows is what `LearningHandle.loss` learns from. In evaluation mode rows leave where the policy says.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.deciding import Deciding, tied
from rl_skip.attached.examples import IGNORED, call, checked_labels, logits_of, made_up, split_batch
from rl_skip.attached.finding import run_all_layers
from rl_skip.attached.flops import LayerFlops
from rl_skip.attached.fresh_readouts import CountsReadout, after_layers, check_model, fresh_after, new_readouts, tried
from rl_skip.attached.handle import Handle
from rl_skip.attached.identity import weights_of
from rl_skip.attached.skip_config import SkipConfig
from rl_skip.attached.stand_in import StandIn
from rl_skip.attached.tail import head_modules, modules_beside
from rl_skip.core.batches import deployed
from rl_skip.core.dial import PriceTable, checked_price
from rl_skip.core.errors import UserError
from rl_skip.core.exits import EveryExit, ExitPass
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.reward import Reward
from rl_skip.core.routing import Router, RoutingState
from rl_skip.core.task import Classification
from rl_skip.learning.alone import learn_alone
from rl_skip.learning.averages import Averages
from rl_skip.learning.calibration import SLACK, Measure, calibrate
from rl_skip.learning.exact import Leaving, entropy_weight, exact_loss, exit_metrics, leaving
from rl_skip.learning.outcomes import SeenExits
from rl_skip.learning.prices import price_source
from rl_skip.learning.supervised import exits_loss

__all__ = ["PART", "LearningHandle", "handle_of"]

PART = "rl_skip"
"""What the model calls the part that policy and readouts are while they are attached."""
TASK = Classification()
NO_CALL = "no call of the model was seen that could be learned from: call the model, then the loss"


@dataclass(frozen=True)
class _Pass:
    """What a call in training mode showed; all of B rows."""

    answers: list[Tensor]
    """(B, C) after each layer but the last."""
    observations: Tensor
    """(B, L - 1, S)."""
    compute: Tensor
    """(B, L), of leaving after each layer."""
    price: Tensor
    """(B,)."""
    leaves: Leaving | None
    """None where the call was made without gradients."""


class LearningHandle(Handle):
    """A fresh policy attached to a model that is trained, made by `rl_skip.attach(model, SkipConfig(…))`.

    Policy and readouts become a part of the model, `model.rl_skip`: `model.parameters()`, `state_dict()`, DDP and `model.to()` see them there.
    `detach()` takes it out again.

    Args:
        model: a classifier: it answers each row with logits (B, C), in a tensor or as `.logits`.
        layers: the L layers after which rows may leave.
        path: where in the model they are.
        config: what the policy learns, and how.
        example: a batch to try the model on; None: one is made up.
        width: D; None: as wide as the example shows.
        flops: operations of the layers; None: counted on the example.
        options: `channel_dim`, `prompt_tokens` and `prefix`, as `Handle` takes them.

    Raises:
        UserError: for a model that does not answer rows with logits, or that the example does not fit.
    """

    learns = True

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        path: str,
        *,
        config: SkipConfig,
        example: Inputs | None,
        width: int | None,
        flops: LayerFlops | None,
        **options: Any,
    ) -> None:
        check_model(model, layers[0])
        self.config = config
        self._chosen: float | None = None
        self._router_of_all: Router | None = None
        self._pass: _Pass | None = None
        self._why_none = NO_CALL
        self._averages: Averages | None = None
        batch = made_up(model) if example is None else example
        with tried(model, example):
            names, shape, one_token = after_layers(model, layers, path, batch)
        prefix, channel_dim = options["prefix"], options["channel_dim"]
        within = model.get_submodule(prefix.rstrip("."))
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        fresh = fresh_after(within, inside, config.fresh_head) if len(shape) > 2 else ()  # of tokens there is a mean
        one_token = one_token and config.fresh_head is not False
        seen_width = width or shape[channel_dim]
        readouts = new_readouts(within, inside, len(layers), seen_width, config.readout_rank, fresh, one_token, channel_dim)
        super().__init__(model, layers, path, width=width, flops=flops, policy=None, readouts=readouts, **options)
        self._chosen = None
        assert self.stack.readouts is not None
        self.stack.readouts.requires_grad_(True).train(model.training)
        try:
            self._count_readout(batch)
            rules = config.rules(len(layers), self.stack.width, self.stack.readouts)
            policy = JumpPolicy(rules).to(next(self.stack.readouts.parameters()).device)
        except BaseException:
            super().detach()
            raise
        self.policy = policy
        reward = config.reward
        assert isinstance(reward, Reward)
        self.reward = reward.formula
        self.deciding = Deciding(policy, price_source(config, reward)).train(model.training)
        beside = modules_beside(within, path.removeprefix(prefix))
        self._heads = head_modules(within, beside, readouts.plan, fresh) or [beside[name] for name in readouts.plan.get("modules", [])]
        self._layerdrop = run_all_layers(model)
        model.add_module(PART, nn.ModuleDict({"deciding": self.deciding, "readouts": self.stack.readouts}))

    def __getstate__(self) -> dict[str, Any]:
        """A copy has nothing left to learn from."""
        return super().__getstate__() | {"_pass": None, "_why_none": NO_CALL}

    @property
    def routing(self) -> bool:
        return self._enabled

    @property
    def price(self) -> float:
        """The price λ that the policy sees in evaluation mode: that which was set or calibrated, or else where the steering stands."""
        return self.deciding.prices.validation_price if self._chosen is None else self._chosen

    @price.setter
    def price(self, price: float) -> None:
        self._chosen = checked_price(price)

    @property
    def part(self) -> nn.Module:
        """What the model has got: policy, readouts, and where the steering of the price stands."""
        return self.model.get_submodule(PART)

    def model_weights(self) -> dict[str, Any]:
        return {name: tensor for name, tensor in super().model_weights().items() if not name.startswith(f"{PART}.")}

    def _samples(self) -> dict[str, list[float]]:
        return weights_of(self.model, PART)

    def parameter_groups(self, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser: the model at this learning rate, head and readouts faster, the policy at its own; as `train.py` has them.

        `torch.optim.AdamW(handle.parameter_groups(5e-5, weight_decay=0.01))` takes the place of `AdamW(model.parameters(), lr=5e-5)`. What does not
        require a gradient is left out.
        """
        config, readouts = self.config, self.stack.readouts
        assert readouts is not None
        policy = {id(parameter) for parameter in self.deciding.parameters()}
        faster = {id(parameter) for head in (*self._heads, readouts) for parameter in head.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"rest": [], "heads": [], "policy": []}
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                groups["policy" if id(parameter) in policy else "heads" if id(parameter) in faster else "rest"].append(parameter)
        settings = {
            "rest": (learning_rate, weight_decay),
            "heads": (learning_rate * config.head_rate, weight_decay),
            "policy": (config.policy_learning_rate, 0.0),
        }
        return [{"params": groups[name], "lr": rate, "weight_decay": decay} for name, (rate, decay) in settings.items() if groups[name]]

    def loss(self, outputs: Any, labels: Tensor, *, teacher_logits: Tensor | None = None, progress: float | None = None) -> Tensor:
        """What the last call of the model is learned from, a scalar: labels and teacher at all exits, and the policy's expected reward.

        It may be negative: a policy that earns much lowers it. The gradient of the expected reward over all exits is exact.

        Args:
            outputs: what the model returned: logits (B, C), or something that has them as `.logits`.
            labels: (B,), class numbers; rows with −100 are padding and count nowhere.
            teacher_logits: (B, C), what a better model says of the rows. None: the readouts learn from the model's own full depth.
            progress: how much of the training has passed, 0 to 1, which says how large the entropy bonus is. None: as `SkipConfig.updates` tells.

        Raises:
            UserError: if there is no such call, it was made in evaluation mode or without gradients, it was learned from already, labels or
                teacher do not fit it.
        """
        seen, logits = self._taken(), logits_of(outputs, self.model)
        if len(logits) != len(seen.price):
            raise UserError(f"these outputs are of {len(logits)} rows, the last call was of {len(seen.price)}: give what that call returned")
        if not isinstance(labels, Tensor):
            raise UserError(f"labels are a tensor of {len(logits)} class numbers, got {type(labels).__name__}")
        labels = checked_labels(labels.to(logits.device), logits)
        if teacher_logits is not None and teacher_logits.shape != logits.shape:
            raise UserError(f"teacher_logits have shape {tuple(teacher_logits.shape)}, the outputs {tuple(logits.shape)}; give a row for each")
        rows = (labels != IGNORED).nonzero().squeeze(1)
        if len(rows) == 0:
            raise UserError(f"all {len(labels)} labels are {IGNORED}, which marks padding: leave such a batch out")
        with torch.autocast(logits.device.type, enabled=False):
            answers = torch.stack([answer.float() for answer in (*seen.answers, logits)])  # (L, B, C)
            exits = ExitPass(answers[:, rows], seen.observations[rows], seen.compute[rows])
            teacher = None if teacher_logits is None else teacher_logits.detach()[rows].to(logits.device).float()
            return self._learned(exits, seen, rows, labels[rows], teacher, progress)

    def _learned(
        self, exits: ExitPass, seen: _Pass, rows: Tensor, labels: Tensor, teacher: Tensor | None, progress: float | None
    ) -> Tensor:
        config, prices, price = self.config, self.deciding.prices, seen.price[rows]
        assert seen.leaves is not None
        leaves = Leaving(seen.leaves.probability[rows], seen.leaves.entropy[rows], seen.leaves.decisions[rows])
        scores, accuracy = exits.scores(self._score, labels), exits.scores(TASK.score, labels)  # (R, L) each
        if self._averages is None and config.budget is not None and config.budget + SLACK < (smallest := float(exits.compute[:, 0].mean())):
            least = f"leaving after the first layer spends {smallest:.4f} in this batch"
            warnings.warn(f"{least}, more than the budget of {config.budget:g}", stacklevel=3)
        earned = prices.reward.total(scores, exits.compute, price.unsqueeze(1))  # (R, L)
        policy_loss, expected = exact_loss(leaves, earned, self._entropy_weight(progress))
        weights = {"exit_weight": config.exit_weight, "distillation_weight": config.distillation_weight}
        supervised = exits_loss(TASK.loss, exits.answers, labels, teacher, **weights)
        metrics = exit_metrics(leaves, expected, accuracy, "accuracy", exits.compute, price)
        self.deciding.observe(metrics["rollout/compute"].detach())
        self._chosen = None  # what was calibrated held for the model as it was
        self._averages = self._averages or Averages(price.device)
        self._averages.add(metrics | {"train/supervised_loss": supervised, "train/policy_loss": -expected.mean()})
        return policy_loss + supervised

    def metrics(self) -> dict[str, float]:
        """Means over the losses since the last reading, for a logger, by the names that `train.py` gives them: reward, accuracy and compute in
        expectation over when rows leave, entropy of the decisions, price, how many rows run each layer (`layers/run_rate_2`), losses. {} where there
        were none."""
        read = {} if self._averages is None else self._averages.read()
        return read | self.deciding.prices.metrics() if read else {}

    def calibrate(self, validation: Iterable[Any], *, learn_from: Iterable[Any] | None = None) -> PriceTable:
        """After training: measures which price leads to which compute, so that `handle.budget` can be set; and chooses the price to run at.

        That is the fixed price, or the one of the budget, to which the policy is fitted; else that of the smallest compute whose accuracy
        is within half a point of the best.

        Args:
            validation: batches of rows that were not trained on: the model's arguments by name with labels, or pairs (inputs, labels).
            learn_from: batches of the training rows, from which the policy alone first learns what the trained model says of them
                (`SkipConfig.policy_epochs`).

        Returns:
            The table, as `handle.table`; empty for a policy of one price.

        Raises:
            UserError: if there are no batches, they are not such, or what the model says of them is not finite.
        """
        config, policy, prices = self.config, self.policy, self.deciding.prices
        assert policy is not None
        if learn_from is not None:
            seen = self._seen(learn_from)
            self.trained_on = {**self.trained_on, "rows": len(seen.score)}
            learn_alone(policy, seen, prices, config, learning_rate=config.policy_learning_rate, generator=torch.default_generator)
            self.deciding.keep()
        rows = self._seen(validation)

        def measure(some: int | None) -> Measure:
            return lambda price: (rows if some is None else rows.some(some)).point(policy, price)

        self.table, self.price = calibrate(policy, prices, measure, "accuracy", below=True)
        return self.table

    def detach(self) -> None:
        super().detach()
        delattr(self.model, PART)
        for holder, name, value in reversed(self._layerdrop):  # a configuration that parts share was first what it shall be
            setattr(holder, name, value)

    def _router(self, route: Tensor | None, hidden: Tensor) -> tuple[Router, Tensor | float]:
        if self._router_of_all is not None:
            return self._router_of_all, 1.0
        if route is not None or not self.model.training:
            if self._pass is None:
                self._why_none = "the last call was on a forced route" if route is not None else "the last call was in evaluation mode"
                self._why_none += ", which shows nothing of all exits: call the model in training mode, model.train()"
            return super()._router(route, hidden)
        if self._pass is not None and self._pass.leaves is not None:
            self._pass = None
            raise UserError(
                "the call before this one was not learned from: go down the gradient of handle.loss(outputs, labels) in place of outputs.loss, with "
                "transformers' Trainer by rl_skip.SkipTrainer; calls that are not to be learned from belong within handle.disabled()"
            )
        assert self.policy is not None
        price = self.deciding.prices.draw(hidden.shape[0], torch.default_generator).to(hidden.device)  # (B,)
        return EveryExit(self.policy), price

    def _decide(self, router: Router, state: RoutingState, i: int, rows: Tensor) -> None:
        if not isinstance(router, EveryExit):
            super()._decide(router, state, i, rows)
            return
        with torch.autocast(rows.device.type, enabled=False):
            state.follow(rows, router.decide(state, i, rows))
            if i == self.stack.depth - 1:
                self._keep(router, state)

    def _keep(self, router: EveryExit, state: RoutingState) -> None:
        """Keeps what a call showed for the loss, and ties it to what the model returns."""
        observations, leaves = router.observations(), None
        if torch.is_grad_enabled():
            assert self.policy is not None
            leaves = leaving(self.policy, observations)
            state.carry.hidden = tied(state.carry.hidden, [*router.answers, leaves.probability])
        self._pass = _Pass(router.answers, observations, router.compute(state.spent), state.price, leaves)

    def _taken(self) -> _Pass:
        """The call to learn from, which is then used up."""
        seen, self._pass = self._pass, None
        if seen is None:
            raise UserError(self._why_none)
        if not self.model.training:
            raise UserError("the model is in evaluation mode, where rows leave early and nothing is learned: model.train(), and call it again")
        self._why_none = "the last call was learned from already: call the model again before the next loss"
        if seen.leaves is None:
            self._why_none = NO_CALL
            raise UserError("the last call was made under torch.no_grad(), so nothing can be learned from it: call the model with gradients")
        return seen

    def _score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return TASK.score(outputs, labels) if self.config.score == "accuracy" else TASK.probability(outputs, labels)

    def _entropy_weight(self, progress: float | None) -> float:
        config = self.config
        if progress is None and config.updates is None:
            return float((config.entropy_start * config.entropy_end) ** 0.5)
        return entropy_weight(config, self.deciding.updates / (config.updates or 1) if progress is None else progress)

    @torch.no_grad()
    def _seen(self, loader: Iterable[Any]) -> SeenExits:
        """What the model as it is shows of all rows of a loader, on the CPU."""
        assert self.policy is not None
        parts: list[tuple[Tensor, ...]] = []
        numbers = True
        with deployed(self.model):
            for batch in loader:
                inputs, labels = split_batch(batch)
                router = EveryExit(self.policy)
                with self._all_by(router):
                    logits = logits_of(call(self.model, inputs), self.model)
                seen, self._pass = self._pass, None
                assert seen is not None
                labels = checked_labels(labels.to(logits.device), logits)
                rows = (labels != IGNORED).nonzero().squeeze(1)
                answers = torch.stack([answer.float() for answer in (*seen.answers, logits)])
                numbers = numbers and not bool(answers[:, rows].isnan().any())
                exits = ExitPass(answers[:, rows], seen.observations[rows], seen.compute[rows])
                parts.append((exits.observations.cpu(), exits.scores(self._score, labels[rows]).cpu(), exits.compute.cpu()))
        if not parts:
            raise UserError("there are no batches to learn from or to calibrate on; give a loader that can be gone through again")
        seen_rows = SeenExits(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if not numbers or not seen_rows.observations.isfinite().all():
            raise UserError(f"what the {type(self.model).__name__} answers is not finite: its weights have diverged; train it anew, at a lower rate")
        return seen_rows

    def _count_readout(self, batch: Inputs) -> None:
        with deployed(self.model), self._all_by(CountsReadout(self.model)):
            call(self.model, batch)

    @contextmanager
    def _all_by(self, router: Router) -> Iterator[None]:
        """Within it, calls of the model are routed by `router`."""
        self._router_of_all = router
        try:
            yield
        finally:
            self._router_of_all = None


def handle_of(model: nn.Module) -> LearningHandle:
    """The handle of the policy that learns with a model.

    Raises:
        UserError: if there is none.
    """
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, StandIn) and isinstance(forward.handle, LearningHandle):
            return forward.handle
    raise UserError(f"no policy learns with this {type(model).__name__}: call rl_skip.attach(model, rl_skip.SkipConfig(…)) before")
