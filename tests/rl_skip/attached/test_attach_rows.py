"""Which dimension of an argument holds the rows is found by calling, whatever sizes happen to be equal: against calls of one row at a time."""

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import UserError
from rl_skip.attached.rows import RowPlaces, few_rows, places_by_shape, put_rows, rows_of

B, T, D, H = 4, 4, 8, 2  # as many tokens as rows
ROUTES = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(D, D), nn.Embedding(T, D)

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor | None = None,
        alibi: Tensor | None = None,
        positions: Tensor | None = None,
        angles: tuple[Tensor, Tensor] | None = None,
        scale: Tensor | None = None,
        unused: Tensor | None = None,
    ) -> Tensor:
        x = self.linear(hidden)
        if bias is not None:  # (T, T) or (B, T, T)
            x = (bias + x @ x.transpose(1, 2)).softmax(dim=-1) @ x
        if alibi is not None:  # (B * H, T, T)
            x = (alibi.view(x.shape[0], H, T, T).mean(dim=1) + x @ x.transpose(1, 2)).softmax(dim=-1) @ x
        if positions is not None:  # (T,)
            x = x + self.table(positions)
        if angles is not None:
            x = x * angles[0] + x.flip(-1) * angles[1]
        if scale is not None:  # (B,)
            x = x * scale.view(-1, 1, 1)
        return hidden + x


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Layer() for _ in range(4))

    def forward(self, hidden: Tensor, **arguments: object) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden, **arguments)
        return hidden


ARGUMENTS: dict[str, tuple[dict[str, object], list[str]]] = {
    "a bias shared by all rows": ({"bias": torch.randn(T, T)}, []),
    "a bias of each row": ({"bias": torch.randn(B, T, T)}, ["bias"]),
    "a bias of each row and head in one dimension": ({"alibi": torch.randn(B * H, T, T)}, ["alibi"]),
    "position numbers": ({"positions": torch.tensor([2, 0, 3, 1])}, []),
    "angles of each token": ({"angles": (torch.randn(T, D), torch.randn(T, D))}, []),
    "angles of all rows": ({"angles": (torch.randn(1, T, D), torch.randn(1, T, D))}, []),
    "angles of each row": ({"angles": (torch.randn(B, T, D), torch.randn(B, T, D))}, ["angles"]),
    "a number for each row": ({"scale": torch.randn(B)}, ["scale"]),
    "what is not used": ({"unused": torch.randn(B, T)}, []),
    "much at once": ({"bias": torch.randn(T, T), "positions": torch.arange(T), "scale": torch.randn(B)}, ["scale"]),
}


def _of_row(name: str, value: object, b: int, of_rows: list[str]) -> object:
    if name not in of_rows:
        return value
    if isinstance(value, tuple):
        return tuple(_of_row(name, item, b, of_rows) for item in value)
    assert isinstance(value, Tensor)
    return value.view(B, value.shape[0] // B, *value.shape[1:])[b]


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_rows_are_told_from_what_is_as_long_as_the_batch(kind: str) -> None:
    torch.manual_seed(0)
    model, hidden = _Model().eval(), torch.randn(B, T, D)
    arguments, of_rows = ARGUMENTS[kind]
    handle = rl_skip.attach(model, layers="blocks")
    with torch.no_grad():
        with handle.forced(ROUTES):
            together = model(hidden, **arguments)
        handle.detach()
        for b, route in enumerate(ROUTES):
            alone = hidden[b : b + 1]
            for block, runs in zip(model.blocks, route.tolist(), strict=True):
                own = {name: _of_row(name, value, b, of_rows) for name, value in arguments.items()}
                alone = block(alone, **own) if runs else alone
            torch.testing.assert_close(together[b : b + 1], alone)


def test_training_goes_on_as_if_nothing_had_been_tried() -> None:
    """Neither the mode of the layers nor the random numbers of dropout are touched."""
    torch.manual_seed(0)
    model, hidden = _Model().train(), torch.randn(B, T, D)
    with rl_skip.attach(model, layers="blocks").forced(ROUTES):
        torch.manual_seed(1)
        model(hidden, bias=torch.randn(T, T))
        after = torch.rand(1)
    torch.manual_seed(1)
    torch.randn(T, T)
    assert after.equal(torch.rand(1))
    assert all(module.training for module in model.modules())


def test_a_batch_of_one_is_never_cut() -> None:
    model = _Model().eval()
    angles = (torch.randn(1, T, D), torch.randn(1, T, D))
    hidden, route = torch.randn(1, T, D), ROUTES[0]
    bias = torch.randn(T, T)
    handle = rl_skip.attach(model, layers="blocks")
    with torch.no_grad():
        with handle.forced(route):
            found = model(hidden, angles=angles, bias=bias)
        handle.detach()
        for i in (0, 3):
            hidden = model.blocks[i](hidden, angles=angles, bias=bias)
    assert found.equal(hidden)


class _WholeBatch(nn.Module):
    """A layer that runs on a whole batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        return self.linear(hidden).view(-1, T, D) + bias.view(B, 1, D) if hidden.shape[0] == B else hidden.new_ones(2)[:, 5]


def test_what_cannot_be_told_is_refused_in_a_line() -> None:
    layer, places = _WholeBatch(), RowPlaces()
    arguments, hidden = {"bias": torch.randn(B, D)}, torch.randn(B, T, D)

    def call(rows: Tensor | None, _found: object) -> Tensor:
        return layer(hidden if rows is None else hidden[rows], arguments["bias"])

    with pytest.raises(UserError, match=r"which dimension of bias holds the rows of the batch cannot be told: a layer does not run on some of its 4"):
        places.settle(arguments, B, call, "a layer")


def test_the_second_dimension_may_hold_the_rows() -> None:
    angles, weight = torch.randn(3, B, T, D), torch.randn(D)
    hidden = torch.randn(B, T, D)
    places = RowPlaces()

    def call(rows: Tensor | None, found: object) -> Tensor:
        if rows is None:
            return (hidden * angles).sum(dim=0) * weight
        return (hidden[rows] * rows_of(angles, rows, B, "angles", found)).sum(dim=0) * weight

    found = places.settle({"angles": angles}, B, call, "a layer")
    assert found["angles", 4] == 1
    rows = torch.tensor([3, 1])
    assert rows_of(angles, rows, B, "angles", found).equal(angles[:, rows])
    put = put_rows(angles, torch.zeros(3, 2, T, D), rows, B, "angles", found)
    assert put[:, rows].abs().max() == 0 and put[:, [0, 2]].equal(angles[:, [0, 2]])


def test_places_by_shape_are_those_that_change_with_the_rows() -> None:
    few = few_rows(B, (2, H, T, D)).shape[0]
    assert few == 3 and few_rows(3, (2, 4)).tolist() == [2, 1, 0, 2, 1]

    def before(rows: int) -> dict[str, list[object]]:
        return {"embed": [torch.zeros(rows, T, D), (torch.zeros(T, D), torch.zeros(1, rows, D))], "heads": [torch.zeros(rows * H, T)]}

    assert places_by_shape(before(B), before(few), B, few) == {
        ("embed.0", 3): 0,
        ("embed.1.0", 2): None,
        ("embed.1.1", 3): 1,
        ("heads.0", 2): 0,
    }
