"""Means over the tokens: of the real ones alone, plain, or with weights for each group of channels."""

import pytest
import torch

from rl_skip.core.means import attended_mean, groups_of, masked_mean
from rl_skip.core.readouts import PoolingAdapter


def test_groups_are_of_32_channels_or_one() -> None:
    assert [groups_of(width) for width in (384, 64, 32, 48, 8, 1)] == [12, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scores_that_are_alike_give_the_plain_mean(groups: int) -> None:
    hidden, mask = torch.randn(2, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    for real in (mask, None):
        torch.testing.assert_close(attended_mean(hidden, torch.full((2, 5, groups), 0.3), real), masked_mean(hidden, real))


def test_a_row_without_a_real_token_has_a_mean_of_zero() -> None:
    mean = attended_mean(torch.randn(2, 3, 4), torch.randn(2, 3, 2), torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert mean[0].eq(0).all() and mean[1].ne(0).all()


def test_each_group_looks_where_its_score_is_high() -> None:
    hidden, scores = torch.randn(1, 3, 4), torch.zeros(1, 3, 2)
    scores[0, 2, 0], scores[0, 0, 1] = 50.0, 50.0
    torch.testing.assert_close(attended_mean(hidden, scores, None)[0], torch.cat([hidden[0, 2, :2], hidden[0, 0, 2:]]))


@pytest.mark.parametrize("groups", [0, 4])
def test_an_adapter_that_attends_begins_as_the_one_on_the_mean(groups: int) -> None:
    torch.manual_seed(0)
    plain, other = PoolingAdapter(8, rank=3), PoolingAdapter(8, rank=3, groups=groups)
    for weight in plain.parameters():
        torch.nn.init.normal_(weight)
    other.load_state_dict(plain.state_dict(), strict=False)
    hidden, mask = torch.randn(2, 5, 8), torch.tensor([[True, True, False, False, False], [True] * 5])
    torch.testing.assert_close(other(hidden, mask), plain(hidden, mask))
    grid, channels_first = torch.randn(2, 8, 3, 4), PoolingAdapter(8, rank=3, channel_dim=1, groups=groups)
    channels_first.load_state_dict(other.state_dict())
    torch.testing.assert_close(channels_first(grid), other(grid.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(grid))
