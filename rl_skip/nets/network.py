"""The networks that `train.py` builds around a task's data, described by a few numbers that fit in a JSON file."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import nn

from rl_skip.core.bounded import MOST_LAYERS, MOST_WIDTH
from rl_skip.core.costs import attention_block_flops
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields, read_dataclass
from rl_skip.core.kinds import NetworkKind
from rl_skip.core.plugins import Registry, absolute_reference, is_own
from rl_skip.core.stack import LayerStack
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead, Embedding, check_embedding, embedding_from_json, embedding_to_json
from rl_skip.nets.gated import BodyName, GatedStack, HeadedStack
from rl_skip.nets.module_stack import ModuleStack

__all__ = ["NETWORK", "STACKS", "NetworkConfig", "StackBuilder", "build_network", "network_from_json", "network_to_json", "read_network_config"]

StackBuilder = Callable[["NetworkConfig", nn.Module, int, int], LayerStack]
"""(config, embed, tokens, classes) → a stack of `config.layers` layers of `config.width`, whose inputs `embed` turns into hidden
states (B, T, D), or pairs of them and masks (B, T), T being `tokens`; its outputs are logits (B, classes)."""
MOST_BUILT = 2**28
"""Of layers · width², in the networks that are built here: about 3 billion weights."""
STACKS: Registry[StackBuilder] = Registry("stack", "--stack")


@dataclass(frozen=True)
class NetworkConfig:
    """Size and kind of the network."""

    layers: int = 8
    """Layers that may be skipped. More leaves more to save and takes longer to train; 6 to 24."""
    width: int = 64
    """Width of the hidden state. More learns finer things and costs its square; 32 to 512."""
    heads: int = 4
    """Attention heads of each layer; must divide the width."""
    stack: str = "blocks"
    """"blocks": plain transformer blocks; "skip-layer": the original module, with memory gates, memory and jump weights;
    or file.py:function for a stack of your own."""
    body: BodyName = "attention"
    """What a layer of "skip-layer" computes on its active tokens; "blocks" are attention blocks always."""
    dropout: float = 0.0
    """Share of each block's update that is dropped in training. More regularises more; 0 to 0.2."""
    tied: bool = False
    """All layers of "blocks" share one block's weights."""

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MOST_LAYERS:
            raise UserError(f"a network has 1 to {MOST_LAYERS:,} layers, got {self.layers}; set --layers")
        if self.width > MOST_WIDTH:
            raise UserError(f"a network is at most {MOST_WIDTH:,} wide, got {self.width}; set --width")
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise UserError(f"a width of {self.width} does not divide into {self.heads} heads; set --width to a multiple of --heads")
        if not is_own(self.stack):  # whose file is run where a network is built, and not before
            STACKS.find(self.stack)
        if self.body not in get_args(BodyName):
            raise UserError(f"a body is one of {', '.join(get_args(BodyName))}, got {self.body!r}; set --body")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {self.dropout}; set --dropout")
        if self.tied and self.stack != "blocks":
            raise UserError(f"the layers of {self.stack} cannot be tied; set --stack blocks, or --no-tied")
        object.__setattr__(self, "stack", absolute_reference(self.stack))  # which holds from every folder

    def build(self, embedding: Embedding, tokens: int, classes: int) -> LayerStack:
        """The network between an embedding and a head for so many classes, with freshly initialised weights."""
        return build_network(self, embedding, tokens, classes)


def _blocks(config: NetworkConfig, embed: nn.Module, tokens: int, classes: int) -> LayerStack:
    head = ClassifierHead(config.width, classes)
    distinct = 1 if config.tied else config.layers
    layers: list[nn.Module] = [AttentionBlock(config.width, config.heads, dropout=config.dropout) for _ in range(distinct)]
    layers = layers * (config.layers // distinct)
    flops = float(attention_block_flops(tokens, config.width))
    return ModuleStack(embed, layers, head, width=config.width, layer_flops=[flops] * config.layers, layers_take_mask=True)


def _gated(config: NetworkConfig, embed: nn.Module, tokens: int, classes: int) -> LayerStack:
    head = ClassifierHead(config.width, classes)
    trunk = GatedStack(config.width, config.heads, config.layers, body=config.body, tokens=tokens)
    return HeadedStack(embed, trunk, head)


STACKS.register("blocks", _blocks)
STACKS.register("skip-layer", _gated)


def build_network(config: NetworkConfig, embedding: Embedding, tokens: int, classes: int) -> LayerStack:
    """A classifier with freshly initialised weights.

    Raises:
        UserError: if the stack is a person's own and fails, or has another size.
    """
    builder = STACKS.find(config.stack)
    embed = embedding(config.width) if callable(embedding) else embedding.build(config.width)
    if not is_own(config.stack):
        if config.layers * config.width**2 > MOST_BUILT:
            size = f"{config.layers} layers of width {config.width:,}"
            raise UserError(f"{size} are more than is built, layers · width² up to {MOST_BUILT:,}; set --layers and --width, or bring a --stack")
        return builder(config, embed, tokens, classes)
    try:
        stack = builder(config, embed, tokens, classes)
    except UserError:
        raise
    except Exception as error:  # a person's own code can fail in any way
        raise UserError(f"the stack {config.stack} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(stack, LayerStack):
        raise UserError(f"the stack {config.stack} returned {type(stack).__name__}, not a rl_skip.LayerStack")
    if (stack.depth, stack.width) != (config.layers, config.width):
        built = f"{stack.depth} layers of width {stack.width}"
        raise UserError(f"the stack {config.stack} has {built}; build config.layers of config.width, or set --layers and --width to these")
    return stack


def network_to_json(config: NetworkConfig, embedding: Embedding, tokens: int, classes: int) -> dict[str, Any] | None:
    """What `network_from_json` rebuilds the network from; None where the embedding is a person's own function."""
    described = embedding_to_json(embedding)
    return None if described is None else {**asdict(config), "embedding": described, "tokens": tokens, "classes": classes}


def network_from_json(described: dict[str, Any]) -> LayerStack:
    """The network that `network_to_json` described, with freshly initialised weights. A stack of a person's own is run."""
    arguments = dict(described)
    try:
        embedding, tokens, classes = arguments.pop("embedding"), arguments.pop("tokens"), arguments.pop("classes")
        config = NetworkConfig(**arguments)
    except (KeyError, TypeError) as error:
        raise UserError(f"the network is described wrongly: {error}") from None
    return build_network(config, embedding_from_json(embedding), tokens, classes)


def read_network_config(fields: Fields) -> NetworkConfig:
    """A `NetworkConfig` from JSON, checked field by field."""
    return read_dataclass(NetworkConfig, fields, may_lack=("tied",))


def _check(fields: Fields, width: int, depth: int) -> None:
    beside = ("tokens", "classes", "embedding")
    read_network_config(Fields({name: value for name, value in fields.values.items() if name not in beside}, fields.source, fields.prefix))
    fields.same("width", width)
    fields.same("layers", depth)
    for name in ("tokens", "classes"):
        fields.integer(name)
    check_embedding(fields.object("embedding"))


def _missing(described: dict[str, Any]) -> str | None:
    """Loading a folder runs no file that its description names."""
    stack = described["stack"]
    if not is_own(stack) or stack in STACKS.names():
        return None
    return f"was written for a stack of your own, {stack}, whose file is not run by itself; build it, and give it as stack="


NETWORK = NetworkKind(_check, network_from_json, _missing)
"""Networks that `build_network` builds."""
