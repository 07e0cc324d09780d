"""Network, policy and critic with their optimisers, and the updates that every agent shares."""

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from agents.options.config import TrainConfig
from agents.run.descent import Descent, parameters_of
from agents.run.gradients import PartLoss, add_up, parts
from agents.run.moments import MOMENTS
from agents.run.sharding import shard
from agents.run.split_tensors import is_split, split_state, whole_copy
from agents.run.tuning import choose_parameters, merge_adapters
from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.beside import routed_beside_full
from rl_skip.core.devices import multiplies_bfloat16
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs, lengths
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.core.processes import together
from rl_skip.core.random_routes import random_routes
from rl_skip.core.readouts import Readouts
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.learning.prices import seen_range
from rl_skip.learning.supervised import distillation, exits_loss, taught_loss
from rl_skip.measure.costs import measure_costs

__all__ = ["Critic", "Learner"]

RISE_UPDATES = 50
TEACHER_BATCH = 256
LARGEST_TEACHER = 2**28
"""Numbers that a teacher's outputs of all training rows may hold, 1 GB; beyond, the readouts learn from the network's own full depth instead."""
LOSS = "loss"
SHARD_ROWS = 8
"""Training rows by which a network that is to be split gets to know its inputs."""
BUCKET = 32
"""Batches among whose rows those of like length are put together: more pads less, fewer mixes better."""


def _outputs(stack: LayerStack, route: Tensor, batch: Examples, _rows: Tensor) -> tuple[Tensor]:
    return (routed_forward(stack, route, batch.inputs).outputs,)


class Critic(nn.Module):
    """Observation (N, S) → expected reward to go, (N,). Of the policy's shape, but never exported."""

    def __init__(self, rules: JumpRules) -> None:
        super().__init__()
        self.body = JumpPolicy(rules)
        self.body.fc_out = nn.Linear(rules.hidden, 1)
        self.body.legal = torch.ones(rules.layout.depth, 1, dtype=torch.bool)

    def forward(self, observation: Tensor) -> Tensor:
        return self.body(observation).squeeze(1)


class Learner:
    """A network on a task, a jump policy and a critic, with their optimisers.

    One update at a time; which batch belongs to which update depends on the seed and the update's number alone, so a
    run that stops can go on exactly.

    Args:
        config: the options.
        task: what is learned.
        device: where.
        stack: a network of one's own in place of the one that the options describe.
        made_anew: whether the network has learned nothing yet.
    """

    def __init__(
        self, config: TrainConfig, task: Task, device: torch.device, stack: LayerStack | None = None, made_anew: bool = False
    ) -> None:
        self.config, self.task, self.device = config, task, device
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.train, self.validation = self._examples("train"), self._examples("validation")
        self.stack = task.build(config.network) if stack is None else stack
        if not config.shard:  # else no device may have the room
            self.stack.to(device)
        self.new_readouts = config.policy.readouts and self.stack.readouts is None
        """Whether the readouts are this learner's own, and not those that a given stack brought along."""
        self._give_readouts()
        self.adapters = choose_parameters(self.stack, config.schedule.tune)
        if config.shard:
            shard(self.stack, self.train.take(slice(0, SHARD_ROWS)).to("cpu").inputs, device)
        price_range, has_memory, readouts = seen_range(config.pricing), self.stack.has_memory, self.stack.readouts
        flops, classes = (0.0, 0) if readouts is None else (readouts.flops, readouts.classes)
        self.rules = config.policy.rules(self.stack.depth, self.stack.width, price_range, has_memory, flops, classes)
        self.policy, self.critic = JumpPolicy(self.rules).to(device), Critic(self.rules).to(device)
        if config.pricing.cost == "latency":
            rows = self.validation.take(slice(0, config.pricing.cost_batch)).inputs
            measured = measure_costs(self.stack, (config.pricing.cost_batch,), device, example=rows, policy=self.policy)
            self.stack.costs = together().from_first(measured)  # each process would measure something else
        schedule = config.schedule
        if self.new_readouts and schedule.tune == "frozen" and schedule.warmup_epochs > 0 and not self.rules.jumps:
            untaught = "--tune frozen leaves readouts as they begin: without jumps the warm-up teaches the last layer alone"
            raise UserError(f"{untaught}; set --tune all, or --readouts --jumps")
        reach = lengths(self.train.inputs)
        self.lengths = None if reach is None else reach.cpu()
        """(N,), of the training rows, where they are padded."""
        self.tunes = schedule.tune != "frozen"
        """Whether the network goes on learning once the policy has started."""
        self.teacher: Tensor | None = None
        """(N, ...), what the network said of the training rows at full depth when the warm-up had ended, for readouts to learn from."""
        halves = schedule.precision == "bf16" or (schedule.precision == "auto" and multiplies_bfloat16(device))
        self.precision = torch.bfloat16 if halves else torch.float16 if schedule.precision == "fp16" else None
        """The number format of the network's updates; None: single precision."""
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.descent = Descent(self.stack, self.policy, self.critic, schedule, scaler, fused=config.options.pretrained)
        self.full_route = torch.ones(self.stack.depth, dtype=torch.bool, device=device)
        self.updates_per_epoch = max(len(self.train) // schedule.batch_size, 1)
        self.warmup_updates = schedule.warmup_epochs * self.updates_per_epoch if config.agent_class.warms_up else 0
        self.begins_again = config.begins_again and self._outputs_fit()
        """Whether the network that the warm-up makes is a teacher, and no more."""
        unneeded = 0 if config.agent_class.warms_up or self.begins_again else schedule.warmup_epochs  # which train the network itself instead
        self.updates = self.warmup_updates + (unneeded + schedule.epochs) * self.updates_per_epoch
        self.stays_as_drawn = made_anew and schedule.tune not in ("all", "frozen")
        """Whether the weights of a new network's layers never learn; of adapters, and norms, more may."""
        self.begins_untaught = made_anew and self.tunes and self.warmup_updates == 0
        """Whether what follows the warm-up begins with a network that has learned nothing."""
        self.given: dict[str, Tensor] | None = self._learnable() if self.begins_again and self.warmup_updates > 0 else None
        """What of the network learns, as it was given, by name, until the warm-up has ended; None where that is not to be undone."""
        if (least := min(schedule.batch_size, len(self.train))) < (count := together().count * schedule.accumulate):
            raise UserError(f"a batch of {least} rows does not divide into {count} parts, for each process and pass one; raise --batch-size")

    def _give_readouts(self) -> None:
        """Gives the stack its readouts, unless it has them."""
        if not self.config.policy.readouts:
            if self.stack.readouts is not None:
                raise UserError("the given stack has readouts, which answer rows that leave early; set --readouts")
            return
        example = self.validation.take(slice(0, 2)).to(self.stack.layer_flops.device).inputs
        with deployed(self.stack):
            if self.stack.readouts is None:
                self.stack.add_readouts(example, plan=self.readout_plan(example))
            self.stack.know_readouts(example)

    def readout_plan(self, example: Inputs) -> dict[str, Any] | None:
        """What readouts are to be, as `LayerStack.make_readout` takes it, found on a few rows; None: as suits the stack."""
        policy = self.config.policy
        if policy.readout_plan is not None or policy.readout_attention:
            return policy.readout_plan
        return {name: value for name, value in self.stack.plan_readouts(example).items() if name != "groups"}

    def _examples(self, split: Split) -> Examples:
        examples = self.task.load(split)
        if split == "train" and (limit := self.config.train_rows) is not None:
            examples = examples.some(limit)
        return examples.to(self.device)

    def batch(self, update: int) -> Examples:
        """The inputs of an update: each epoch sees all examples once, in an order of its own; rows of like length are together."""
        return self.train.take(self.batch_rows(update))

    def batch_rows(self, update: int) -> Tensor:
        """(B,) long, which training rows `batch` takes."""
        epoch, part = divmod(update, self.updates_per_epoch)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train), generator=generator)
        size = self.config.schedule.batch_size
        if self.lengths is not None and len(order) >= size:
            order = self._bucketed(order[: self.updates_per_epoch * size], generator)
        return order[part * size : (part + 1) * size].to(self.device)

    def _bucketed(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The rows in batches of like length, the batches in random order."""
        assert self.lengths is not None
        size = self.config.schedule.batch_size
        sorted_parts = [part[self.lengths[part].argsort(stable=True)] for part in order.split(BUCKET * size)]
        batches = torch.cat(sorted_parts).view(-1, size)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()

    def merge_adapters(self) -> None:
        """Ends the training of adapters: what they learned becomes part of the network's own weights."""
        merge_adapters(self.adapters)
        self.adapters = None

    def joint_progress(self, update: int) -> float:
        """How much of the joint training has passed, 0 to 1."""
        return max(update - self.warmup_updates, 0) / max(self.updates - self.warmup_updates, 1)

    def set_learning_rates(self, update: int) -> float:
        """Sets both optimisers' rates for an update; returns the network's."""
        schedule, done, all_updates = self.config.schedule, update, self.updates if self.tunes else self.warmup_updates
        if self.begins_again and self.warmup_updates > 0:  # it and what follows are two trainings
            later = update >= self.warmup_updates
            done, all_updates = (update - self.warmup_updates, self.updates - self.warmup_updates) if later else (update, self.warmup_updates)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done / max(all_updates, 1), 1.0)))
        rate = schedule.learning_rate * min(1.0, (done + 1) / RISE_UPDATES) * max(cosine, 0.01)
        self.descent.set_rates(rate, schedule.policy_learning_rate * (1 - 0.9 * self.joint_progress(update)))
        return rate

    def prepare(self, learns: bool) -> None:
        """Makes the network ready to learn, or to run as deployed: in evaluation mode and without gradients."""
        if self.stack.training != learns:
            self.stack.train(learns)
        for parameter in self.descent.trainable:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)

    def full_depth_loss(self, batch: Examples) -> tuple[Tensor, Tensor]:
        """Mean loss at full depth, a scalar, and the outputs there, (B, C)."""
        outputs = routed_forward(self.stack, self.full_route, batch.inputs).outputs
        return self.task.loss(outputs, batch.labels).mean(), outputs

    def network_loss(self, batch: Examples, rows: Tensor, route: Tensor) -> tuple[Tensor, Tensor]:
        """What the network learns from on one route for each input, a scalar; and its outputs on them, (B, C).

        Beside the labels, the routes learn from the teacher where there is one, and else from the network's own outputs at full
        depth, while full depth learns from the labels, so that it stays a good teacher (in-place distillation: Yu and Huang 2019,
        "Universally Slimmable Networks").

        Args:
            batch: B rows.
            rows: (B,), which training rows they are.
            route: (B, L) bool.
        """
        schedule = self.config.schedule
        from_itself, full = schedule.distillation_weight > 0 and self.teacher is None, None
        if schedule.full_depth_weight > 0:
            outputs, full = routed_beside_full(self.stack, route, batch.inputs)
        else:
            outputs = routed_forward(self.stack, route, batch.inputs).outputs
        loss = self.taught_loss(outputs, batch, rows)
        if full is not None:
            loss = loss + schedule.full_depth_weight * self.taught_loss(full, batch, rows)
        if from_itself:
            with torch.no_grad():
                full = routed_forward(self.stack, self.full_route, batch.inputs).outputs if full is None else full
            loss = loss + schedule.distillation_weight * distillation(outputs, full.detach())
        return loss, outputs

    def exits_loss(self, batch: Examples, rows: Tensor, answers: Tensor) -> Tensor:
        """What the network learns from where every exit answered, a scalar: labels, and what the teacher says.

        Args:
            batch: B rows.
            rows: (B,), which training rows they are.
            answers: (L, B, ...), of each layer; the last layer's weigh 1, the others' `exit_weight`.
        """
        schedule = self.config.schedule
        weights = {"exit_weight": schedule.exit_weight, "distillation_weight": schedule.distillation_weight}
        return exits_loss(self.task.loss, answers, batch.labels, self.teacher_of(rows), **weights)

    def taught_loss(self, outputs: Tensor, batch: Examples, rows: Tensor) -> Tensor:
        """Mean loss of outputs on the labels and, where there is a teacher, on what it said of these rows; a scalar.

        Args:
            outputs: (B, ...), for
            batch: B rows.
            rows: (B,), which training rows they are.
        """
        return taught_loss(self.task.loss, outputs, batch.labels, self.teacher_of(rows), self.config.schedule.distillation_weight)

    def teacher_of(self, rows: Tensor) -> Tensor | None:
        """(B, ...), what the teacher said of these training rows; None without one."""
        return None if self.teacher is None else self.teacher[rows.to(self.teacher.device)].to(self.device)

    def end_warm_up(self, taught: Callable[[], None] = lambda: None) -> None:
        """Called between warm-up and what follows.

        Readouts that have not learned yet begin as the head that the warm-up made. In a run with readouts what the network says now of the
        training rows is the teacher of all that follows, of a policy's network and of the baselines alike. It may be no more than that, and begin
        again as it was given.

        Args:
            taught: is called before it begins again, its readouts begun as the head that the warm-up made.
        """
        if self.stack.readouts is None:
            return
        if self.warmup_updates > 0 and self.begins_again:
            self._begin_readouts(self.stack.readouts)
            self.make_teacher()
            taught()
            self._begin_again()
        self._begin_readouts(self.stack.readouts)
        if self.warmup_updates > 0 and not self.begins_again:
            self.make_teacher()

    def _begin_readouts(self, readouts: Readouts) -> None:
        if self.new_readouts and not (self.rules.jumps and self.config.schedule.random_route_weight > 0):  # random routes have taught them
            self.descent.forget()  # which is no part of a copy
            head = self.stack.make_readout(readouts.plan)
            readouts.begin_as((head if self.stack.split is None else whole_copy(head)).to(self.device))
            together().copy_first(readouts.parameters())  # of adapters a part is drawn at random

    def _learnable(self) -> dict[str, Tensor]:
        """Copies of all weights that learn, and of what the network counts besides."""
        fixed = {name for name, parameter in self.stack.named_parameters() if not parameter.requires_grad}
        return {name: value.detach().clone() for name, value in self.stack.state_dict().items() if name not in fixed}

    @cached_property
    def given_digest(self) -> str:
        """SHA-256, in hexadecimal, of the weights that the network will begin again with; empty where it does not, or is split over processes."""
        if self.given is None or self.stack.split is not None:
            return ""
        digest = hashlib.sha256()
        for name, value in sorted(self.given.items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_given(self, digest: str) -> None:
        """Refuses, by a `ValueError`, another network to begin again with than the one of that digest."""
        if digest and self.given_digest and digest != self.given_digest:
            raise ValueError("the model that was given has changed since the run began, and the network begins again as that")

    def _begin_again(self) -> None:
        """Gives the network back what it began with; its optimiser forgets."""
        assert self.given is not None, "the warm-up ends once"
        weights = self.stack.state_dict()
        with torch.no_grad():
            for name, value in self.given.items():
                weights[name].copy_(value)
        self.given = None
        self.descent.network_optimizer.state.clear()

    def make_teacher(self) -> None:
        """Makes what the network says now of the training rows the teacher of all that follows, unless nothing learns from one or it is too much."""
        if self.config.schedule.distillation_weight > 0 and self._outputs_fit():
            run = partial(_outputs, self.stack, self.full_route)
            (self.teacher,) = in_batches(run, self.train, TEACHER_BATCH, self.stack)

    def _outputs_fit(self) -> bool:
        """Whether the outputs of all training rows can be kept: those of a language model with many tokens cannot."""
        return math.prod(self._taught_shape()) <= LARGEST_TEACHER

    def _taught_shape(self) -> tuple[int, ...]:
        """(N, ...), that of the outputs of all training rows."""
        row = self.train.take(slice(0, 1))
        with deployed(self.stack):
            return len(self.train), *routed_forward(self.stack, self.full_route, row.inputs).outputs.shape[1:]

    def random_routes(self, rows: int) -> Tensor:
        """(B, L) bool: each row keeps its layers with a probability of its own, even from the smallest allowed to 1."""
        depth, least = self.stack.depth, self.config.schedule.random_route_keep
        chances = torch.rand(rows, depth, generator=self.generator)
        keep = least + (1 - least) * torch.rand(rows, 1, generator=self.generator)
        return random_routes(chances, keep, self.rules).to(self.device)

    def learn(self, update: int, rows: Tensor, loss: PartLoss) -> dict[str, Tensor]:
        """One step of both optimisers down the gradient of the mean loss over a batch, each process having taken its parts.

        Args:
            update: its number, which says the learning rates.
            rows: (B,) long, the training rows of the whole batch.
            loss: of a part. What it draws by the learner's generator must have been drawn for the whole batch before.

        Returns:
            The metrics, means over the whole batch, with the norm of the network's gradient and its learning rate; the same in all processes.

        Raises:
            NotFinite: before the step, if the gradient is not finite.
        """
        rate = self.set_learning_rates(update)
        self.descent.forget()
        sums: dict[str, Tensor] = {}
        for part in parts(self.train, rows, self.config.schedule.accumulate):
            mean, metrics = loss(part)
            self.descent.backward(mean if part.weight == 1 else part.weight * mean)
            taken = {name: value.detach() if value.requires_grad else value for name, value in (metrics | {LOSS: mean}).items()}
            taken = taken if part.weight == 1 else {name: part.weight * value for name, value in taken.items()}
            sums = {name: sums[name] + value for name, value in taken.items()} if sums else taken
        sums = add_up(chain(self.descent.trainable, self.policy.parameters(), self.critic.parameters()), sums)
        together().copy_first(self._statistics())
        return {"train/grad_norm": self.descent.step(sums.pop(LOSS)), "train/learning_rate": torch.tensor(rate)} | sums

    def _statistics(self) -> Iterator[Tensor]:
        """What batch norm has counted of the rows that it saw, other ones in each process."""
        for module in self.stack.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                yield from module.buffers(recurse=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "stack": self.stack.state_dict(),
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            **self.descent.state_dict(),
            **({} if self.teacher is None else {"teacher": self.teacher}),
            **({} if self.given is None else {"given": self.given_digest}),
            **({"costs": self.stack.costs.to_json()} if isinstance(self.stack.costs, MeasuredCosts) else {}),
            "generator": self.generator.get_state(),
            **self.random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.check_given(state.get("given", ""))
        self.stack.load_state_dict(split_state(state["stack"], self.stack))
        for name in ("policy", "critic"):
            getattr(self, name).load_state_dict(state[name])
        self.descent.load_state_dict(state)
        self.teacher = self._checked_teacher(state["teacher"]) if "teacher" in state else None
        if "costs" in state:  # as the run began: another measurement would change what the policy learns
            self.stack.costs = MeasuredCosts.read(Fields(state["costs"], "the checkpoint"), self.stack.depth)
        self.generator.set_state(state["generator"].cpu())
        self.load_random_state(state)

    def split_parts(self) -> dict[tuple[str | int, ...], Tensor]:
        """How tensors of the state are split over processes, by the keys that lead to them."""
        weights = {("stack", name): weight for name, weight in self.stack.state_dict().items() if is_split(weight)}
        numbered = [(number, weight) for number, weight in enumerate(parameters_of(self.descent.network_optimizer)) if is_split(weight)]
        return weights | {("network_optimizer", "state", number, moment): weight for number, weight in numbered for moment in MOMENTS - {"step"}}

    def random_state(self) -> dict[str, Any]:
        """Of PyTorch's own generators, which draw what is each process's own, such as what dropout leaves out."""
        return {"torch_random": torch.get_rng_state(), "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []}

    def load_random_state(self, state: dict[str, Any]) -> None:
        """Goes back to where `random_state` was taken."""
        torch.set_rng_state(state["torch_random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all([random.cpu() for random in state["cuda_random"]])

    def _checked_teacher(self, teacher: Tensor) -> Tensor:
        """What a teacher said, if that is an output of the network's shape for each training row; else a `ValueError`."""
        if teacher.shape != (expected := self._taught_shape()) or not teacher.is_floating_point() or not teacher.isfinite().all():
            raise ValueError(f"the teacher's outputs, of shape {tuple(teacher.shape)}, are no finite numbers of shape {expected}")
        return teacher

    def begin_together(self) -> None:
        """Gives all processes the first one's weights, but those of a split network, and each but the first random numbers of its own for what is not
        drawn for a whole batch."""
        processes = together()
        for module in (self.policy, self.critic, *([self.stack] if self.stack.split is None else [])):
            processes.copy_first(chain(module.parameters(), module.buffers()))
        if self.given is not None and processes.several and self.stack.split is None:
            self.given = self._learnable()
        if not processes.first:
            torch.manual_seed(self.config.seed + (processes.rank << 32))
