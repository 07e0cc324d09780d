"""What a network learns from where every exit answered: labels, and a teacher, or its own full depth."""

from collections.abc import Callable

from torch import Tensor

__all__ = ["distillation", "exits_loss", "taught_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs (B, ...) and labels of rows → (B,), the loss of each."""


def distillation(outputs: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross-entropy of outputs (B, …, C) from the teacher's outputs, a scalar (Hinton et al. 2015, at temperature 1)."""
    return _cross_entropy(outputs, teacher).mean()


def _cross_entropy(outputs: Tensor, teacher: Tensor) -> Tensor:
    """(..., B, …), of each row's outputs (..., B, …, C) from the teacher's, (B, …, C)."""
    return -(teacher.softmax(dim=-1) * outputs.log_softmax(dim=-1)).sum(dim=-1)


def taught_loss(loss: Loss, outputs: Tensor, labels: Tensor, teacher: Tensor | None, distillation_weight: float) -> Tensor:
    """Mean loss of outputs (B, ...) on the labels and, where there is a teacher, on what it said of the rows, (B, ...); a scalar."""
    supervised = loss(outputs, labels).mean()
    if teacher is None or distillation_weight == 0:
        return supervised
    return supervised + distillation_weight * distillation(outputs, teacher)


def exits_loss(loss: Loss, answers: Tensor, labels: Tensor, teacher: Tensor | None, *, exit_weight: float, distillation_weight: float) -> Tensor:
    """What a network learns from where every exit answered, a scalar: labels, and what the teacher says.

    Without a teacher the exits learn from the network's own full depth, which learns from the labels, so that it stays a good
    teacher (in-place distillation: Yu and Huang 2019, "Universally Slimmable Networks").

    Args:
        loss: of each row.
        answers: (L, B, ...), of each layer; the last layer's weigh 1, the others' `exit_weight`.
        labels: of the B rows.
        teacher: (B, ...), outputs of a teacher; None without one.
        exit_weight: of the loss of each exit but the last.
        distillation_weight: of what the teacher says, beside the labels.
    """
    L, B = answers.shape[:2]
    again = labels.repeat(L, *[1] * (labels.dim() - 1))  # (L B, ...), the labels once for each layer
    lesson, last = (part.mean() for part in loss(answers.flatten(0, 1), again).split([(L - 1) * B, B]))
    if distillation_weight > 0 and teacher is not None:
        early, late = (part.mean() for part in _cross_entropy(answers, teacher).split([L - 1, 1]))
        lesson, last = lesson + distillation_weight * early, last + distillation_weight * late
    elif distillation_weight > 0:
        lesson = lesson + distillation_weight * _cross_entropy(answers[:-1], answers[-1].detach()).mean()
    return last + exit_weight * (L - 1) * lesson
