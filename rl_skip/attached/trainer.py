"""transformers' `Trainer` for a model with a policy that learns: `SkipTrainer`, or `SkipTraining` before a Trainer of your own.

transformers is imported on first use.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rl_skip.attached.learning import PART, LearningHandle, handle_of
from rl_skip.attached.library import require
from rl_skip.core.dial import PriceTable
from rl_skip.core.errors import UserError
from rl_skip.export.weights import read_weights, save_weights

if TYPE_CHECKING:
    SkipTrainer: Any
    Base: Any
else:
    Base = object

__all__ = ["POLICY_FOLDER", "STATE", "SkipTrainer", "SkipTraining"]

STATE = f"{PART}.safetensors"
"""In a checkpoint: policy, readouts, and where the steering of the price stands, for the training to go on."""
POLICY_FOLDER = "policy"
"""In a checkpoint: the policy as it is exported, for `rl_skip.attach(model, folder)`."""
LABELS = "labels"


class SkipTraining(Base):
    """What a `Trainer` does otherwise where a policy learns; it goes before it: `class Mine(rl_skip.SkipTraining, Trainer)`.

    Each batch is learned from by `handle.loss`; optimisers get `handle.parameter_groups`. The logs, and so TensorBoard, hold `handle.metrics()`, and
    an evaluation, whose rows are routed, `eval_compute`. A checkpoint, and what `save_model` writes, holds the model without the policy, for its
    `from_pretrained`; the policy, in the folder `policy`, for `rl_skip.attach`; and `rl_skip.safetensors`, for `resume_from_checkpoint` and
    `load_best_model_at_end`. All arguments are the Trainer's.

    Raises:
        UserError: if no `SkipConfig` is attached to the model, the parameters are sharded, or another loss is asked for.
    """

    handle: LearningHandle
    """Of the model's policy."""
    optimizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handle = handle_of(self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UserError("the policy is trained with whole parameters on each device, not with those that FSDP or DeepSpeed shards: use DDP")
        other_loss = self.args.label_smoothing_factor > 0 or self.compute_loss_func is not None
        if other_loss and type(self).compute_loss is SkipTraining.compute_loss:
            raise UserError(
                "model and policy learn from handle.loss, where label_smoothing_factor and compute_loss_func count for nothing: leave them out, "
                "or make the loss in a compute_loss of your own"
            )
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = False  # the loss is a mean over its batch: accumulation divides it
        self._computes: list[Tensor] = []

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """As the Trainer's own, with a rate for the policy, and one for head and readouts."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if options.keys() & {"params", "model", "optimizer_dict"}:  # it names its own
                return super().create_optimizer(model)
            self.optimizer = kind(self.handle.parameter_groups(self.args.learning_rate, self.args.weight_decay), **options)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """`handle.loss` in training, and what the model itself says in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if LABELS not in inputs:
            raise UserError(f"the batches have no {LABELS!r}, from which model and policy learn: name that column of the data so")
        outputs = model(**{name: value for name, value in inputs.items() if name != LABELS})
        loss = self.handle.loss(outputs, inputs[LABELS], progress=self.state.global_step / max(self.state.max_steps, 1))
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's own; what the rows spent is kept."""
        predicted = super().prediction_step(model, *args, **kwargs)
        self._computes.append(self.handle.last_compute)
        return predicted

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's own, with the mean compute among the metrics."""
        self._computes = []
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._computes and output.metrics is not None:
            spent = self.accelerator.gather(torch.cat(self._computes))
            output.metrics[f"{metric_key_prefix}_compute"] = float(spent.mean())
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's own; beside a loss stands what the policy did."""
        if "loss" in logs:
            logs.update(self.handle.metrics())
        super().log(logs, *args, **kwargs)

    def calibrate(self, validation: Iterable[Any] | None = None, learn_from: Iterable[Any] | None = None) -> PriceTable:
        """After training: `handle.calibrate` on the evaluation data, the policy alone learning from the training data first."""
        rows = self.get_eval_dataloader() if validation is None else validation
        return self.handle.calibrate(rows, learn_from=self.get_train_dataloader() if learn_from is None else learn_from)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(str(folder), {name: tensor for name, tensor in state.items() if not name.startswith(f"{PART}.")})
        if self.args.should_save:
            save_weights(folder / STATE, self._part.state_dict())
            self.handle.save_pretrained(folder / POLICY_FOLDER, overwrite=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._read(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._read(Path(self.state.best_model_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        in_own_file = [name for name in load_result.missing_keys if name.startswith(f"{PART}.")]
        for name in in_own_file:
            load_result.missing_keys.remove(name)
        super()._issue_warnings_after_load(load_result)

    def _read(self, checkpoint: Path) -> None:
        self._part.load_state_dict(read_weights(checkpoint / STATE, self._part.state_dict()))

    @property
    def _part(self) -> nn.Module:
        return self.handle.part


@cache
def _skip_trainer() -> type:
    return type("SkipTrainer", (SkipTraining, require().Trainer), {"__doc__": SkipTraining.__doc__, "__module__": __name__})


def __getattr__(name: str) -> Any:
    if name == "SkipTrainer":
        return _skip_trainer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
