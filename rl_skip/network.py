"""The networks that `train.py` builds around a task's data, described by a few numbers that fit in a JSON file."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import nn

from rl_skip.blocks import AttentionBlock, ClassifierHead, Embedding, embedding_from_json, embedding_to_json
from rl_skip.costs import attention_block_flops
from rl_skip.errors import UserError
from rl_skip.gated import BodyName, GatedStack, HeadedStack
from rl_skip.stack import LayerStack, ModuleStack

__all__ = ["NetworkConfig", "StackKind", "build_network", "network_from_json", "network_to_json"]

StackKind = Literal["blocks", "skip-layer"]


@dataclass(frozen=True)
class NetworkConfig:
    """Size and kind of the network."""

    layers: int = 8
    """Layers that may be skipped. More leaves more to save and takes longer to train; 6 to 24."""
    width: int = 64
    """Width of the hidden state. More learns finer things and costs its square; 32 to 512."""
    heads: int = 4
    """Attention heads of each layer; must divide the width."""
    stack: StackKind = "blocks"
    """"blocks": plain transformer blocks; "skip-layer": the original module, with memory gates, memory and jump weights."""
    body: BodyName = "attention"
    """What a layer of "skip-layer" computes on its active tokens; "blocks" are attention blocks always."""
    dropout: float = 0.0
    """Share of each block's update that is dropped in training. More regularises more; 0 to 0.2."""
    tied: bool = False
    """One block with one set of weights stands for all layers of "blocks": what it does once it can do again."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise UserError(f"a network needs at least 1 layer, got {self.layers}; set --layers")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise UserError(f"a width of {self.width} does not divide into {self.heads} heads; set --width to a multiple of --heads")
        if self.stack not in get_args(StackKind):
            raise UserError(f"a stack is one of {', '.join(get_args(StackKind))}, got {self.stack!r}; set --stack")
        if self.body not in get_args(BodyName):
            raise UserError(f"a body is one of {', '.join(get_args(BodyName))}, got {self.body!r}; set --body")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {self.dropout}; set --dropout")
        if self.tied and self.stack != "blocks":
            raise UserError(f"the layers of {self.stack} cannot be tied; set --stack blocks, or --no-tied")


def build_network(config: NetworkConfig, embedding: Embedding, tokens: int, classes: int) -> LayerStack:
    """A classifier with freshly initialised weights."""
    embed = embedding(config.width) if callable(embedding) else embedding.build(config.width)
    head = ClassifierHead(config.width, classes)
    if config.stack == "skip-layer":
        trunk = GatedStack(config.width, config.heads, config.layers, body=config.body, tokens=tokens)
        return HeadedStack(embed, trunk, head)
    distinct = 1 if config.tied else config.layers
    layers: list[nn.Module] = [AttentionBlock(config.width, config.heads, dropout=config.dropout) for _ in range(distinct)]
    layers = layers * (config.layers // distinct)
    flops = float(attention_block_flops(tokens, config.width))
    return ModuleStack(embed, layers, head, width=config.width, layer_flops=[flops] * config.layers, layers_take_mask=True)


def network_to_json(config: NetworkConfig, embedding: Embedding, tokens: int, classes: int) -> dict[str, Any] | None:
    """What `network_from_json` rebuilds the network from; None where the embedding is a person's own function."""
    described = embedding_to_json(embedding)
    return None if described is None else {**asdict(config), "embedding": described, "tokens": tokens, "classes": classes}


def network_from_json(described: dict[str, Any]) -> LayerStack:
    """The network that `network_to_json` described, with freshly initialised weights."""
    arguments = dict(described)
    try:
        embedding, tokens, classes = arguments.pop("embedding"), arguments.pop("tokens"), arguments.pop("classes")
        config = NetworkConfig(**arguments)
    except (KeyError, TypeError) as error:
        raise UserError(f"the network is described wrongly: {error}") from None
    return build_network(config, embedding_from_json(embedding), tokens, classes)
