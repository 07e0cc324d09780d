"""Finding the layers of a model that rows may skip."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from rl_skip.core.errors import UserError

__all__ = ["UNROUTABLE", "configured", "depth_of", "find_layers", "fits", "layers_config", "run_all_layers", "uncompiled", "width_of"]

KNOWN = {
    "bart": "encoder.layers",
    "bert": "encoder.layer",
    "data2vec-audio": "encoder.layers",
    "deberta": "encoder.layer",
    "deberta-v2": "encoder.layer",
    "deit": "deit.layers",
    "dinov2": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "hubert": "encoder.layers",
    "llama": "model.layers",
    "mbart": "encoder.layers",
    "mistral": "model.layers",
    "modernbert": "model.layers",
    "mpnet": "encoder.layer",
    "mt5": "encoder.block",
    "opt": "decoder.layers",
    "qwen2": "model.layers",
    "roberta": "encoder.layer",
    "sew": "encoder.layers",
    "sew-d": "encoder.layers",
    "t5": "encoder.block",
    "unispeech": "encoder.layers",
    "unispeech-sat": "encoder.layers",
    "vit": "vit.layers",
    "wav2vec2": "encoder.layers",
    "wav2vec2-conformer": "encoder.layers",
    "wavlm": "encoder.layers",
    "whisper": "encoder.layers",
    "xlm-roberta": "encoder.layer",
}
"""Where the layers of a family are: the end of their path. Of encoder-decoders, those of the encoder."""
UNROUTABLE = {
    "PixtralAttentionLayer": "all images of a batch are one row in the layers of Pixtral, so they cannot run on some of them",
    "XLNetLayer": "the rows of XLNet are the second dimension of its hidden state, so its layers cannot run on some of them",
}
"""Classes of layers that cannot run on some rows alone, and why."""
REFUSED = {
    "albert": "ALBERT runs one layer's weights over and over, so there is no list of layers to skip",
    "swin": "the hidden state of Swin shrinks from stage to stage, so its stages cannot be skipped; "
    'one stage can be attached by its path, such as layers="swin.encoder.layers.2.blocks"',
    "xlnet": UNROUTABLE["XLNetLayer"],
}


def find_layers(model: nn.Module, layers: str = "auto") -> tuple[str, Sequence[nn.Module]]:
    """The path of the layers in `model`, and the layers.

    A family that is known has them where it always has; in any other model from transformers they are the one `ModuleList`
    made of checkpointing layers that is as long as the configuration says the model is deep.

    Args:
        model: any model.
        layers: the path of a `ModuleList` or `Sequential`, such as "encoder.blocks"; "auto" to search.

    Raises:
        UserError: if there is no such list, or more than one; the message says what was found.
    """
    path, found = _found(model, layers)
    return path, [uncompiled(layer) for layer in found]


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile(module)` was given, which it calls; any other module as it is."""
    return getattr(module, "_orig_mod", module)


def _found(model: nn.Module, layers: str) -> tuple[str, Sequence[nn.Module]]:
    if layers != "auto":
        return layers, _at_path(model, layers)
    kind = configured(model, "model_type")
    if kind in REFUSED:
        raise UserError(REFUSED[kind])
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 0}
    known = [name for name in lists if _ends_with(name, KNOWN[kind])] if kind in KNOWN else []
    if len(known) == 1:
        return known[0], list(lists[known[0]])
    depths = {name: depth_of(model, name) for name in lists}
    if not any(depths.values()):
        raise UserError(f'{type(model).__name__} has no configuration to find its layers by; name their path, such as layers="encoder.blocks"')
    fitting = [name for name, listed in lists.items() if fits(model, name, listed)]
    if len(fitting) == 1:
        return fitting[0], list(lists[fitting[0]])
    if fitting:
        depth = " and ".join(dict.fromkeys(str(depths[name]) for name in fitting))
        raise UserError(f'{type(model).__name__} has {len(fitting)} lists of {depth} layers: {", ".join(fitting)}; name one, layers="{fitting[0]}"')
    depth = " or ".join(dict.fromkeys(str(depth) for depth in depths.values() if depth))
    others = ", ".join(f"{name or 'the model itself'} ({len(listed)})" for name, listed in lists.items()) or "none"
    raise UserError(f'no list of {depth} layers was found in {type(model).__name__}; its lists are: {others}; name one with layers="…"')


def run_all_layers(model: nn.Module) -> list[tuple[Any, str, float]]:
    """Turns LayerDrop off, by which a model in training leaves out layers of its own accord.

    Returns:
        What held it, its name there, and what it was.
    """
    dropped = []
    for module in model.modules():
        for holder in (module, getattr(module, "config", None)):
            for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
                if hasattr(holder, name):
                    dropped.append((holder, name, getattr(holder, name)))
                    setattr(holder, name, 0.0)
    return dropped


def fits(model: nn.Module, path: str, layers: Sequence[nn.Module] | nn.ModuleList) -> bool:
    """Whether the layers are as many as their configuration says, and all checkpointing layers of transformers."""
    return len(layers) == depth_of(model, path) and all(_is_checkpointing(uncompiled(layer)) for layer in layers)


def layers_config(model: nn.Module, path: str) -> Any:
    """The configuration of the layers at `path`: the nearest on the way to them that says how deep it is, such as the text part's of CLIP."""
    way = path.split(".")
    inside = [model]
    for name in way[:-1]:
        inside.append(inside[-1].get_submodule(name))
    configs = [config for module in reversed(inside) if (config := getattr(module, "config", None)) is not None]
    return next((config for config in configs if isinstance(getattr(config, "num_hidden_layers", None), int)), getattr(model, "config", None))


def depth_of(model: nn.Module, path: str) -> int | None:
    """L as the configuration of the layers at `path` has it, None without one."""
    depth = getattr(layers_config(model, path), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def width_of(model: nn.Module, path: str) -> int | None:
    """D as the configuration of the layers at `path` has it, None without one."""
    width = getattr(layers_config(model, path), "hidden_size", None)
    return width if isinstance(width, int) else None


def configured(model: nn.Module, name: str) -> Any:
    """A field of the model's configuration, None where there is none."""
    return getattr(getattr(model, "config", None), name, None)


def _at_path(model: nn.Module, path: str) -> list[nn.Module]:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        parts = ", ".join(name for name, child in model.named_modules() if isinstance(child, nn.ModuleList | nn.Sequential) and name) or "none"
        raise UserError(f"{type(model).__name__} has nothing at {path!r}; its lists of modules are: {parts}") from None
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        raise UserError(f"{path!r} is a {type(module).__name__}, expected a ModuleList or Sequential of layers")
    return list(module)


def _ends_with(name: str, path: str) -> bool:
    """Whether the path is at the end of the name; a backbone without its head has it without its first part."""
    return f".{name}".endswith(f".{path}") or name == path.split(".")[-1]


def _is_checkpointing(layer: nn.Module) -> bool:
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(layer).__mro__)
