"""What the exits' answers teach, against a loop over layers and rows."""

import pytest
import torch
from torch import Tensor

from rl_skip.learning.supervised import exits_loss

L, B, CLASSES = 4, 5, 3
EXIT_WEIGHT, DISTILLATION_WEIGHT = 0.5, 2.0


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B,), of each row, the mean over its tokens where it has some."""
    each = torch.nn.functional.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")  # (B,) or (B, T)
    return each.view(len(labels), -1).mean(dim=1)


@pytest.mark.parametrize("tokens", [(), (7,)])
@pytest.mark.parametrize("taught", [True, False])
def test_each_exit_learns_from_labels_and_teacher(tokens: tuple[int, ...], taught: bool) -> None:
    """Without a teacher from the last layer, which itself learns from labels alone, and not from what the others make of it."""
    generator = torch.Generator().manual_seed(0)
    answers = torch.randn(L, B, *tokens, CLASSES, generator=generator, requires_grad=True)
    labels = torch.randint(CLASSES, (B, *tokens), generator=generator)
    teacher = torch.randn(B, *tokens, CLASSES, generator=generator) if taught else None
    weights = {"exit_weight": EXIT_WEIGHT, "distillation_weight": DISTILLATION_WEIGHT}
    loss = exits_loss(cross_entropy, answers, labels, teacher, **weights)

    said = answers.detach().clone().requires_grad_(True)
    expected = torch.zeros(())
    for i in range(L):
        for row in range(B):
            weight = (1.0 if i == L - 1 else EXIT_WEIGHT) / B
            log_probs = said[i, row].log_softmax(dim=-1).view(-1, CLASSES)  # one for each token
            expected = expected - weight * log_probs[torch.arange(len(log_probs)), labels[row].view(-1)].mean()
            if taught or i < L - 1:
                wanted = (said[L - 1].detach() if teacher is None else teacher)[row].softmax(dim=-1).view(-1, CLASSES)
                expected = expected - weight * DISTILLATION_WEIGHT * (wanted * log_probs).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, answers)[0], torch.autograd.grad(expected, said)[0])
