"""Pointers to follow: the row says how many, so the depth that it requires is known."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.blocks import PointerEmbedding
from rl_skip.tasks import BundledTask

__all__ = ["HOPS", "HOPS_16", "hops", "reached"]

ROWS: dict[Split, int] = {"train": 100_000, "validation": 2_000, "test": 4_000}
SEED = 0
"""Of the data; the seed of a run does not change them."""


def hops(name: str = "hops", *, nodes: int = 8, longest: int = 8) -> Task:
    """The task `hops`: from a node, follow k pointers through a random permutation of the nodes; the label is the node that is reached.

    k is uniform in 1..`longest`. A row is N + 1 pairs of numbers: each node with the node that it points to, then the start with k.
    No row is in two splits. A layer that follows one pointer is needed k times, and `required_depth` says so.

    Args:
        name: of the task.
        nodes: N. There must be a good many more rows than the 106,000 that are drawn: at least 7.
        longest: the largest k.
    """
    embedding = PointerEmbedding(nodes, longest)
    load = partial(_load, nodes=nodes, longest=longest)
    told: Any = {"in_words": _in_words, "required_depth": _required_depth, "labels": lambda split: load(split).labels}
    return Task(name, tuple(map(str, range(nodes))), load, embedding, embedding.tokens, **told)


def reached(pointers: Tensor) -> Tensor:
    """(B,) long, where each row (B, N + 1, 2) leads."""
    target, hop = pointers[:, :-1, 1], pointers[:, -1, 1]  # (B, N), (B,)
    node = pointers[:, -1:, 0]  # (B, 1)
    for done in range(int(hop.max())):
        node = torch.where(hop.unsqueeze(1) > done, target.gather(1, node), node)
    return node.squeeze(1)


@cache
def _rows(nodes: int, longest: int) -> Tensor:
    """(106,000, N + 1, 2) long, no two alike."""
    generator = torch.Generator().manual_seed(SEED)
    wanted = sum(ROWS.values())
    drawn = wanted + wanted // 2
    target = torch.rand(drawn, nodes, generator=generator).argsort(dim=1)  # (drawn, N), permutations
    start = torch.randint(nodes, (drawn, 1), generator=generator)
    hop = torch.randint(1, longest + 1, (drawn, 1), generator=generator)
    different = dict.fromkeys(map(tuple, torch.cat([target, start, hop], dim=1).tolist()))
    chosen = torch.tensor(list(different)[:wanted])
    node = torch.arange(nodes).expand(wanted, nodes)
    return torch.stack([torch.cat([node, chosen[:, -2:-1]], dim=1), torch.cat([chosen[:, :-2], chosen[:, -1:]], dim=1)], dim=2)


def _load(split: Split, nodes: int, longest: int) -> Examples:
    parts = dict(zip(ROWS, _rows(nodes, longest).split(list(ROWS.values())), strict=True))
    pointers = parts[split].clone()
    return Examples(pointers, reached(pointers))


def _required_depth(examples: Examples) -> Tensor:
    assert isinstance(examples.inputs, Tensor)
    return examples.inputs[:, -1, 1]


def _in_words(examples: Examples) -> list[str]:
    assert isinstance(examples.inputs, Tensor)
    texts = []
    for *pairs, (start, hop) in examples.inputs.tolist():
        texts.append(f"{hop} from {start}: " + " ".join(f"{node}→{target}" for node, target in pairs))
    return texts


def _defaults(given: Mapping[str, str], **sizes: int) -> dict[str, Any]:
    """A network of tied layers, each of which follows one pointer; frozen after the warm-up, unless --tune all.

    A network that learns on needs longer than a policy alone, and prices at which it pays to follow several pointers at once.
    """
    learns_on = given.get("tune") == "all"
    return {
        "heads": 2,
        "tied": True,
        "readouts": False,  # the tied layers answer through one head, whatever the depth
        "jumps": True,
        "allow_exit": True,
        "policy_hidden": 64,
        "price_range": (0.01, 0.5 if learns_on else 0.1),
        "batch_size": 128,
        "learning_rate": 3e-3,
        "policy_learning_rate": 3e-3,
        "eval_epochs": 1,
        "distillation_weight": 0.0,  # where the network learns on, it is wrong about most rows at full depth for long
        "tune": "frozen",
        "routes_per_input": 4,
        "baseline": "value",
        "imitation_weight": 0.3,
        **sizes,
        **({"epochs": 6} if learns_on else {}),
    }


HOPS = BundledTask(hops, partial(_defaults, layers=8, width=32, warmup_epochs=1, epochs=2), needs_data=False)
HOPS_16 = BundledTask(
    partial(hops, "hops-16", nodes=16, longest=16), partial(_defaults, layers=16, width=48, warmup_epochs=2, epochs=4), needs_data=False
)
