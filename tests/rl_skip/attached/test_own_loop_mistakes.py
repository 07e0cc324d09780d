"""What goes wrong in a person's own loop is said in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import UserError
from rl_skip.attached.learning import LearningHandle
from tests.rl_skip.attached.plain_network import Mlp
from tests.rl_skip.attached.test_own_loop import LABELS, attached
from tests.rl_skip.huggingface_models import build


def without_gradients(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    with torch.no_grad():
        out = model(**inputs)
    handle.loss(out, LABELS)


def twice(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    out = model(**inputs)
    handle.loss(out, LABELS)
    handle.loss(out, LABELS)


def forgotten(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    model(**inputs, labels=LABELS).loss.backward()
    model(**inputs)


def evaluated(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    handle.loss(model.eval()(**inputs), LABELS)


def forced(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    with handle.forced(torch.tensor([True, False, True, False, True])):
        handle.loss(model(**inputs), LABELS)


def late(model: nn.Module, handle: LearningHandle, inputs: Any) -> None:
    out = model(**inputs)
    model.eval()
    handle.loss(out, LABELS)


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "never called": (lambda model, handle, inputs: handle.loss(torch.zeros(4, 2), LABELS), "no call of the model was seen"),
    "under no_grad": (without_gradients, "under torch.no_grad"),
    "twice": (twice, "learned from already"),
    "forgotten": (forgotten, "handle.loss.*SkipTrainer"),
    "evaluated": (evaluated, "evaluation mode.*model.train"),
    "forced": (forced, "forced route"),
    "late": (late, "evaluation mode.*model.train"),
    "labels of another length": (lambda model, handle, inputs: handle.loss(model(**inputs), LABELS[:3]), r"\(3,\).*each of 4 rows"),
    "no labels": (lambda model, handle, inputs: handle.loss(model(**inputs), None), "a tensor of 4 class numbers, got NoneType"),
    "labels of tokens": (lambda model, handle, inputs: handle.loss(model(**inputs), LABELS.unsqueeze(1)), r"\(4, 1\)"),
    "labels with a fraction": (lambda model, handle, inputs: handle.loss(model(**inputs), LABELS + 0.5), "of integers"),
    "a class too many": (lambda model, handle, inputs: handle.loss(model(**inputs), LABELS + 1), "a label is 2, and the model has 2 classes"),
    "nothing but padding": (lambda model, handle, inputs: handle.loss(model(**inputs), torch.full((4,), -100)), "padding"),
    "outputs of other rows": (lambda model, handle, inputs: handle.loss(model(**inputs).logits[:2], LABELS[:2]), "of 2 rows.*was of 4"),
    "a tuple": (lambda model, handle, inputs: handle.loss(model(**inputs, return_dict=False), LABELS), "return_dict=True"),
    "a teacher of other classes": (
        lambda model, handle, inputs: handle.loss(model(**inputs), LABELS, teacher_logits=torch.zeros(4, 3)),
        r"teacher_logits have shape \(4, 3\)",
    ),
    "no batches": (lambda model, handle, inputs: handle.calibrate([]), "no batches"),
    "batches without labels": (lambda model, handle, inputs: handle.calibrate([inputs]), "'labels' among them"),
    "a budget before calibration": (lambda model, handle, inputs: setattr(handle, "budget", 0.5), "calibrate"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_the_next_step_works(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    model, handle, inputs = attached()
    with pytest.raises(rl_skip.UserError, match=message) as raised:
        make(model, handle, inputs)
    assert "\n" not in str(raised.value)
    handle.loss(model.train()(**inputs), LABELS).backward()


def test_calls_that_are_not_to_be_learned_from() -> None:
    """They change nothing of what is learned from the call before them."""
    twin, of_twin, same = attached()
    of_twin.loss(twin(**same), LABELS).backward()
    model, handle, inputs = attached()
    out = model(**inputs)
    with handle.disabled():
        model(**inputs)
    model.eval()
    with torch.no_grad():
        model(**inputs)
    model.train()
    handle.loss(out, LABELS).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    expected = [parameter.grad for parameter in twin.parameters() if parameter.grad is not None]
    assert len(grads) == len(expected) > 10
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_models_that_speak_are_refused(family: str) -> None:
    with pytest.raises(rl_skip.UserError, match="classifier|answer each row once|example=batch"):
        rl_skip.attach(build(family), rl_skip.SkipConfig())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rl_skip.attach(build("wav2vec2"), rl_skip.SkipConfig()), "waveforms.*example=batch"),
        (lambda: rl_skip.attach(build("bert"), rl_skip.SkipConfig(), example={"ids": torch.zeros(2, 3)}), "cannot be called on the example"),
        (lambda: rl_skip.attach(Mlp(), rl_skip.SkipConfig(), layers="blocks"), "example=batch"),
        (lambda: rl_skip.attach(nn.Sequential(nn.Linear(3, 3)), rl_skip.SkipConfig(), layers="", example=torch.zeros(2, 3)), "of your own"),
        (lambda: rl_skip.attach(build("bert").bert, rl_skip.SkipConfig()), "without logits|classifier"),
        (lambda: rl_skip.attach(build("bert"), 5), "a policy is a folder, .* got int"),  # type: ignore[arg-type]
    ],
)
def test_a_model_that_cannot_be_tried_stays_as_it_was(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(rl_skip.UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1.5}, "budget="),
        ({"budget": 0.5, "price": 0.1}, "exclude"),
        ({"price": -1.0}, "price="),
        ({"price_range": (1.0, 0.1)}, "price_range="),
        ({"exit_weight": 0.0}, "exit_weight="),
        ({"updates": 0}, "updates="),
        ({"score": "f1"}, "score="),
        ({"readout_rank": 0}, "readout_rank="),
        ({"features": ("warmth",)}, "warmth"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rl_skip.UserError, match=message):
        rl_skip.SkipConfig(**options)


class InPlace(nn.Module):
    """What comes after the layers changes what the last of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(4))
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_head_that_changes_the_hidden_state_in_place_is_refused() -> None:
    model, x = InPlace(), torch.randn(6, 8)
    with torch.no_grad(), pytest.raises(UserError, match="set inplace=False"):
        rl_skip.attach(model, rl_skip.SkipConfig(), layers="layers", example=x)
        model.eval()(x)


def test_a_batch_of_nan_that_is_left_out_leaves_no_trace() -> None:
    model, handle, inputs = attached(price=None, budget=0.5)
    handle.loss(model(**inputs), LABELS)
    expected = handle.price
    with torch.no_grad():
        weight = model.classifier.weight  # type: ignore[union-attr]
        kept = weight.clone()  # type: ignore[operator]
        broken = [parameter for parameter in model.bert.encoder.layer[0].parameters()]  # type: ignore[union-attr, index]
        whole = [parameter.clone() for parameter in broken]
        weight.fill_(torch.nan)  # type: ignore[operator]
        for parameter in broken:
            parameter.fill_(torch.nan)
    assert handle.loss(model(**inputs), LABELS).isnan()
    with torch.no_grad():
        weight.copy_(kept)  # type: ignore[operator]
        for parameter, value in zip(broken, whole, strict=True):
            parameter.copy_(value)
    assert handle.price == expected
    handle.metrics()
    assert handle.loss(model(**inputs), LABELS).isfinite() and torch.tensor(list(handle.metrics().values())).isfinite().all()


def test_answers_that_are_not_finite_are_not_calibrated_on() -> None:
    model, handle, inputs = attached(price=None)
    torch.nn.init.constant_(model.classifier.weight, torch.nan)  # type: ignore[union-attr, arg-type]
    with pytest.raises(UserError, match="not finite: its weights have diverged"):
        handle.calibrate([(inputs, LABELS)])


def test_a_budget_below_the_first_exit_is_told_at_the_first_loss(recwarn: pytest.WarningsRecorder) -> None:
    model, handle, inputs = attached(price=None, budget=0.05)
    for _ in range(2):
        handle.loss(model(**inputs), LABELS)
    (told,) = [str(warning.message) for warning in recwarn if "the budget" in str(warning.message)]
    assert "leaving after the first layer spends 0." in told and "in this batch, more than the budget of 0.05" in told
