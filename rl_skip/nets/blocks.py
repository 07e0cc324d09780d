"""Layer bodies and embeddings that our own networks are made of."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.inputs import Inputs
from rl_skip.core.means import masked_mean
from rl_skip.core.task import Embedding

__all__ = [
    "AttentionBlock",
    "ClassifierHead",
    "Embedding",
    "FrameEmbedding",
    "PatchEmbedding",
    "PointerEmbedding",
    "check_embedding",
    "embedding_from_json",
    "embedding_to_json",
]


class AttentionBlock(nn.Module):
    """A pre-norm transformer block, (B, T, D) → (B, T, D); tokens that `mask` calls padding are not attended to."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"a width of {width} does not divide into {heads} heads; set --width to a multiple of --heads")
        self.heads, self.mlp_ratio = heads, mlp_ratio
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project_in, self.project_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return hidden + self.update(hidden, mask)

    def update(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the block adds to the hidden state, (B, T, D): nothing at padding, whose projections and MLP are not computed."""
        B, T, D = hidden.shape
        real = None if mask is None else mask.flatten().nonzero().squeeze(1)  # (N,)
        tokens = _pack(hidden, real)  # (N, D)
        heads = _unpack(self.project_in(self.norm_attention(tokens)), real, (B, T)).view(B, T, 3, self.heads, D // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=_attention_mask(mask))
        attention = self.dropout(self.project_out(_pack(attended.transpose(1, 2), real)))
        return _unpack(attention + self.dropout(self.mlp(self.norm_mlp(tokens + attention))), real, (B, T))


def _pack(hidden: Tensor, real: Tensor | None) -> Tensor:
    """The tokens of (B, T, ...) that `real` numbers, (N, D); None: all of them."""
    flat = hidden.flatten(2).flatten(0, 1)
    return flat if real is None else flat.index_select(0, real)


def _unpack(tokens: Tensor, real: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The inverse of `_pack`, with zeros where a token is not real."""
    if real is not None:
        tokens = tokens.new_zeros(shape[0] * shape[1], tokens.shape[1]).index_copy(0, real, tokens)
    return tokens.view(*shape, -1)


def _attention_mask(mask: Tensor | None) -> Tensor | None:
    """(B, T) → (B, 1, 1, T). A row without a real token attends to its first, so that softmax has something to sum."""
    if mask is None:
        return None
    first = torch.zeros_like(mask)
    first[:, 0] = ~mask.any(dim=1)
    return (mask | first)[:, None, None, :]


class ClassifierHead(nn.Module):
    """Mean over the real tokens, layer norm, linear: (B, T, D) → (B, classes)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.linear(masked_mean(self.norm(hidden), mask))


@dataclass(frozen=True)
class PatchEmbedding:
    """Images (B, C, H, W) or (B, H, W) cut into patches, each a token."""

    height: int
    image_width: int
    channels: int
    patch: int
    """Height of a patch, and its width too where `patch_width` is None."""
    patch_width: int | None = None
    overlap: int = 0
    """Pixels that a patch sees beyond its edge on every side. Some overlap helps small data sets."""

    @property
    def tokens(self) -> int:
        """T, the number of tokens of one image."""
        return (self.height // self.patch) * (self.image_width // (self.patch_width or self.patch))

    def build(self, width: int) -> nn.Module:
        """The module that embeds, images → (B, T, D)."""
        return _Patches(self, width)


class _Patches(nn.Module):
    def __init__(self, shape: PatchEmbedding, width: int) -> None:
        super().__init__()
        patch, margin = (shape.patch, shape.patch_width or shape.patch), 2 * shape.overlap
        self.project = nn.Conv2d(shape.channels, width, (patch[0] + margin, patch[1] + margin), stride=patch, padding=shape.overlap)
        self.place = nn.Parameter(torch.randn(1, shape.tokens, width) * 0.2)

    def forward(self, images: Inputs) -> Tensor:
        assert isinstance(images, Tensor)
        images = images.unsqueeze(1) if images.dim() == 3 else images
        return self.project(images).flatten(2).transpose(1, 2) + self.place


@dataclass(frozen=True)
class FrameEmbedding:
    """Frames {"frames": (B, F, features), "mask": (B, F)}; every `stride` of them become one token."""

    frames: int
    features: int
    stride: int

    @property
    def tokens(self) -> int:
        """T, the number of tokens of one padded sequence."""
        return -(-self.frames // self.stride)

    def build(self, width: int) -> nn.Module:
        """The module that embeds, frames → (B, T, D) and its mask (B, T)."""
        return _Frames(self, width)


class _Frames(nn.Module):
    def __init__(self, shape: FrameEmbedding, width: int) -> None:
        super().__init__()
        self.stride, self.tokens = shape.stride, shape.tokens
        self.project = nn.Linear(shape.features * shape.stride, width)
        self.place = nn.Parameter(torch.randn(1, shape.tokens, width) * 0.2)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        assert isinstance(inputs, dict)
        frames, mask = inputs["frames"] * inputs["mask"].unsqueeze(-1), inputs["mask"].bool()
        missing = self.tokens * self.stride - frames.shape[1]
        frames, mask = nn.functional.pad(frames, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))
        B = frames.shape[0]
        tokens = self.project(frames.reshape(B, self.tokens, -1)) + self.place
        return tokens, mask.view(B, self.tokens, self.stride).any(dim=2)


@dataclass(frozen=True)
class PointerEmbedding:
    """Pointers (B, N + 1, 2): for each of N nodes a token (node, where it points); the last pair (start, hops) makes two tokens."""

    nodes: int
    longest: int
    """The largest number of hops."""

    @property
    def tokens(self) -> int:
        """T, the nodes, the start and the number of hops."""
        return self.nodes + 2

    def build(self, width: int) -> nn.Module:
        """The module that embeds, pointers → (B, T, D)."""
        return _Pointers(self, width)


class _Pointers(nn.Module):
    """Nodes, targets and starts begin at right angles where the width allows, so that a layer can tell them apart at once.

    The number of hops has a long token of its own, which stands out in the mean over the tokens, what a policy sees; layers
    normalise it.
    """

    LONG = 10.0

    def __init__(self, shape: PointerEmbedding, width: int) -> None:
        super().__init__()
        directions = nn.init.orthogonal_(torch.empty(3 * shape.nodes, width), gain=width**0.5)
        self.node, self.target, self.start = (nn.Parameter(rows.clone()) for rows in directions.split(shape.nodes))  # (N, D) each
        self.hops = nn.Parameter(torch.randn(shape.longest + 1, width))

    def forward(self, pointers: Inputs) -> Tensor:
        assert isinstance(pointers, Tensor)
        nodes = self.node[pointers[:, :-1, 0]] + self.target[pointers[:, :-1, 1]]  # (B, N, D)
        return torch.cat([nodes, self.start[pointers[:, -1:, 0]], self.LONG * self.hops[pointers[:, -1:, 1]]], dim=1)



_KINDS: dict[str, type[PatchEmbedding] | type[FrameEmbedding] | type[PointerEmbedding]] = {
    "patches": PatchEmbedding,
    "frames": FrameEmbedding,
    "pointers": PointerEmbedding,
}


def embedding_to_json(embedding: Embedding) -> dict[str, Any] | None:
    """The embedding in JSON; None for a person's own function, which a file cannot hold."""
    for kind, cls in _KINDS.items():
        if isinstance(embedding, cls):
            return {"kind": kind, **asdict(embedding)}
    return None


def embedding_from_json(described: dict[str, Any]) -> PatchEmbedding | FrameEmbedding | PointerEmbedding:
    """The inverse of `embedding_to_json`."""
    arguments = dict(described)
    kind = arguments.pop("kind", None)
    if kind not in _KINDS:
        raise UserError(f"unknown embedding {kind!r}; known are {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**arguments)
    except TypeError as error:
        raise UserError(f"the embedding {kind!r} is described wrongly: {error}") from None


def check_embedding(fields: Fields) -> None:
    """Refuses a described embedding, field by field, that `embedding_from_json` could not read."""
    kind = fields.text("kind", tuple(_KINDS))
    if kind == "frames":
        expected = {"frames", "features", "stride"}
    elif kind == "pointers":
        expected = {"nodes", "longest"}
    else:
        expected = {"height", "image_width", "channels", "patch"}
        fields.integer("overlap", 0)
        if fields.get("patch_width") is not None:
            fields.integer("patch_width")
    for name in sorted(expected):
        fields.integer(name)
    try:
        embedding_from_json(fields.values)
    except UserError as error:
        raise UserError(f"{fields.source}: {fields.prefix.rstrip('.')}: {error}; write the file anew") from None
