"""Heads beside a model: the mean over the tokens, and one that learns where to look."""

import pytest
import torch

from rl_skip.attached.heads import AttentionHead, answer, mean_head


def _filled(head: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


def test_it_begins_as_the_head_on_the_mean_of_the_normed_tokens() -> None:
    head = AttentionHead(64, 3).eval()
    hidden, mask = torch.randn(2, 5, 64), torch.tensor([[True] * 5, [True, True, False, False, False]])
    tokens = head.norm(hidden)
    for row, count in enumerate((5, 2)):
        expected = head.out(torch.tanh(head.deep(tokens[row, :count].mean(dim=0))))
        torch.testing.assert_close(head(hidden, mask)[row], expected)


def test_each_group_of_channels_looks_where_its_scores_are_high() -> None:
    head, hidden = _filled(AttentionHead(96, 3)), torch.randn(2, 4, 96)
    weights = head.score(head.norm(hidden)).softmax(dim=1)  # (B, T, 3)
    pooled = torch.stack([(head.norm(hidden)[..., c] * weights[..., c // 32]).sum(dim=1) for c in range(96)], dim=1)
    torch.testing.assert_close(head(hidden), head.out(torch.tanh(head.deep(pooled))))


@pytest.mark.parametrize("width", [8, 32, 48, 96])
def test_what_is_not_real_changes_nothing_whatever_the_width(width: int) -> None:
    head, hidden, mask = _filled(AttentionHead(width, 3)), torch.randn(3, 6, width), torch.ones(3, 6, dtype=torch.long)
    mask[0, 4:] = mask[1, 1:] = 0
    cut = head(hidden[:1, :4]), head(hidden[1:2, :1]), head(hidden[2:])
    hidden[0, 4:], hidden[1, 1:] = 1e3, -1e3
    torch.testing.assert_close(answer(head, hidden, mask), torch.cat(cut))


def test_a_row_without_a_real_token_is_answered_with_a_number() -> None:
    assert _filled(AttentionHead(32, 2))(torch.randn(1, 3, 32), torch.zeros(1, 3)).isfinite().all()


def test_a_head_on_the_mean_gets_the_mean_of_the_real_tokens() -> None:
    head, hidden, mask = mean_head(8, 3), torch.randn(2, 4, 8), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(answer(head, hidden, mask)[:1], head(hidden[:1, :2].mean(dim=1)))
