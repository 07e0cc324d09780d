"""Models from transformers in folders: read with their head, and their tokenizers. transformers is imported on first use."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rl_skip.attached.finding import configured, find_layers, width_of
from rl_skip.attached.huggingface import HEAD, HuggingFaceStack
from rl_skip.attached.identity import check_described, check_identity
from rl_skip.attached.library import quiet, require
from rl_skip.core.errors import UserError
from rl_skip.core.kinds import NetworkKind
from rl_skip.core.stack import LayerStack
from rl_skip.export.weights import read_weights

if TYPE_CHECKING:
    from rl_skip.export.description import Description

__all__ = [
    "ATTACHED",
    "load_model",
    "name_classes",
    "order_of_model",
    "read_config",
    "read_extractor",
    "read_tokenizer",
    "takes_token_types",
]

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")


def read_config(folder: str) -> Any:
    """The configuration of the model in a folder.

    Raises:
        UserError: if there is none.
    """
    transformers = require()
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} with a model; set --model to one that save_pretrained wrote")
    if not Path(folder, "config.json").is_file():
        raise UserError(f"{folder} holds no model, it has no config.json; set --model to a folder that save_pretrained wrote")
    with _reading(folder), quiet():
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)


def read_tokenizer(folder: str) -> Any:
    """The tokenizer in a folder.

    Raises:
        UserError: if there is none.
    """
    if not any(Path(folder, name).is_file() for name in TOKENIZERS):  # transformers would make an empty one
        raise UserError(f"{folder} has no tokenizer; write the model's beside it: tokenizer.save_pretrained({folder!r})")
    with _reading(folder), quiet():
        return require().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def read_extractor(folder: str) -> Any:
    """What makes a speech model's inputs of waveforms; where the folder has none, waveforms of 16 kHz are brought to mean 0 and deviation 1."""
    transformers = require()
    with _reading(folder), quiet():
        if Path(folder, "preprocessor_config.json").is_file():
            return transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)


def load_model(folder: str, classes: Sequence[str] | None = None, *, processor: Any = None, **options: Any) -> HuggingFaceStack:
    """The model in a folder as a stack: a classifier with its own head, a language model, or a backbone with a linear head on its mean.

    Args:
        folder: what `save_pretrained` wrote.
        classes: the names of the classes, with which a backbone gets its head; None: a head must be there, if the model needs one.
        processor: what made the inputs, to be saved beside the model.
        options: more arguments of `HuggingFaceStack`.

    Raises:
        UserError: if there is no model, its layers are not found, or it has another number of classes.
    """
    transformers, config = require(), read_config(folder)
    name = next(iter(config.architectures or ()), "")
    own_head = name.endswith(CLASSIFIERS) or classes is None
    model_class = getattr(transformers, name, None) if own_head else transformers.AutoModel
    if model_class is None:
        raise UserError(f"{folder} holds a {name or 'model of an unnamed class'}, which transformers does not know; set --model to another")
    if classes is not None and name.endswith(CLASSIFIERS) and config.num_labels != len(classes):
        raise UserError(
            f"the model in {folder} has {config.num_labels} classes, the data have {len(classes)}; set --data to data with as many, "
            "or --model to a backbone without a head"
        )
    with _reading(folder), quiet():
        model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    saved_head = Path(folder, HEAD)
    if saved_head.is_file() or not own_head:
        count = config.num_labels if classes is None else len(classes)
        if saved_head.is_file() and config.num_labels != count:
            raise UserError(f"the head in {folder} has {config.num_labels} classes, the data have {count}; set --data to data with as many")
        options["head"] = _mean_head(model, count)
        if saved_head.is_file():
            options["head"].load_state_dict(read_weights(saved_head, options["head"].state_dict()))
        elif classes is not None:
            name_classes(model.config, classes)
    stack = HuggingFaceStack(model, **options)
    stack.processor = processor
    return stack


def takes_token_types(config: Any) -> bool:
    """Whether the model of a configuration can be told which of two texts a token belongs to, by `token_type_ids`."""
    transformers = require()
    model_class = getattr(transformers, next(iter(config.architectures or ()), ""), None) or transformers.MODEL_MAPPING.get(type(config), None)
    forward = getattr(model_class, "forward", None)
    return forward is not None and "token_type_ids" in inspect.signature(forward).parameters and getattr(config, "type_vocab_size", 2) > 1


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Writes the names of the classes into a model's configuration."""
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}


def order_of_model(classes: Sequence[str], config: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
    """For each class of the data its number in the model, and the classes in the model's order, if it knows them by these names."""
    named = [str(config.id2label[i]) for i in range(config.num_labels)]
    index = {name.lower(): i for i, name in enumerate(named)}
    if len(index) == len(named) == len(classes) and all(name.lower() in index for name in classes):
        order = torch.tensor([index[name.lower()] for name in classes])
        return order, tuple(classes[int(i)] for i in order.argsort())
    return torch.arange(len(classes)), tuple(classes)


def _mean_head(model: nn.Module, classes: int) -> nn.Module:
    width = width_of(model, find_layers(model)[0])
    if width is None:
        raise UserError(f"{type(model).__name__} has no configuration with a hidden_size, so no head can be added to it; set --model to a classifier")
    dropout = configured(model, "hidden_dropout_prob") or configured(model, "hidden_dropout") or 0.0
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, classes))


@contextmanager
def _reading(folder: str) -> Iterator[None]:
    """Raises what goes wrong while a model or a tokenizer is read as a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # other people's code, on other people's files
        reason = " ".join(str(error).split())
        name = type(error).__name__
        raise UserError(f"{folder} cannot be read ({name}: {reason[:200]}); set --model to a folder that save_pretrained wrote") from None


def _missing(described: dict[str, Any]) -> str:
    return f"goes with a model that you have: load a {described['model_class']}, then rl_skip.attach(model, folder)"


def _build(described: dict[str, Any]) -> LayerStack:
    raise UserError(f"this policy {_missing(described)}")


def _read_model(folder: Path, described: dict[str, Any]) -> LayerStack:
    return load_model(str(folder), layers=described["layers"], prompt_tokens=described.get("prompt_tokens"))


def _check_model(description: "Description", stack: LayerStack, file: Path) -> None:
    assert isinstance(stack, HuggingFaceStack)
    check_identity(description, stack.model, stack.path, None, file)


ATTACHED = NetworkKind(check_described, _build, _missing, _read_model, _check_model)
"""Models that their user has; the kind "attached" in a description."""
