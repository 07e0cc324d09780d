"""Models from transformers in folders: read with their head, built anew, saved beside their tokenizer. transformers is imported when asked for."""

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl_skip.attached.finding import configured, width_of
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.identity import DIGEST
from rl_skip.core.files import atomic_replace
from rl_skip.errors import UserError
from rl_skip.weights import read_weights, save_weights

__all__ = [
    "HEAD",
    "load_model",
    "name_classes",
    "needed",
    "order_of_model",
    "quiet",
    "read_config",
    "read_extractor",
    "read_tokenizer",
    "save_model",
    "without_layers",
]

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
HEAD = "head.safetensors"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")


def needed(name: str = "transformers") -> Any:
    """The package `name`, imported.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}; pip install 'rl-skip[huggingface]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, transformers shows no progress and says nothing but errors."""
    logging = needed("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: str) -> Any:
    """The configuration of the model in a folder.

    Raises:
        UserError: if there is none.
    """
    transformers = needed()
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
        return needed().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def read_extractor(folder: str) -> Any:
    """What makes a speech model's inputs of waveforms; where the folder has none, waveforms of 16 kHz are brought to mean 0 and deviation 1."""
    transformers = needed()
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
    transformers, config = needed(), read_config(folder)
    name = next(iter(config.architectures or ()), "")
    own_head = name.endswith(CLASSIFIERS) or classes is None
    model_class = getattr(transformers, name, None) if own_head else transformers.AutoModel
    if model_class is None:
        raise UserError(f"{folder} holds a {name or 'model of an unnamed class'}, which transformers does not know; set --model to another")
    if classes is not None and name.endswith(CLASSIFIERS) and config.num_labels != len(classes):
        raise UserError(
            f"the model in {folder} tells {config.num_labels} classes apart, the data have {len(classes)}; set --data to data with as many, "
            "or --model to a backbone without a head"
        )
    with _reading(folder), quiet():
        model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    saved_head = Path(folder, HEAD)
    if saved_head.is_file() or not own_head:
        count = config.num_labels if classes is None else len(classes)
        if saved_head.is_file() and config.num_labels != count:
            raise UserError(f"the head in {folder} tells {config.num_labels} classes apart, the data have {count}; set --data to data with as many")
        options["head"] = _mean_head(model, count)
        if saved_head.is_file():
            options["head"].load_state_dict(read_weights(saved_head, options["head"].state_dict()))
        elif classes is not None:
            name_classes(model.config, classes)
    stack = HuggingFaceStack(model, **options)
    stack.processor = processor
    return stack


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Writes the names of the classes into a model's configuration."""
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}


def order_of_model(classes: Sequence[str], config: Any) -> tuple[torch.Tensor, tuple[str, ...]]:
    """For each class of the data its number in the model, and the classes in the model's order, if it knows them by these names."""
    named = [str(config.id2label[i]) for i in range(config.num_labels)]
    places = {name.lower(): i for i, name in enumerate(named)}
    if len(places) == len(named) == len(classes) and all(name.lower() in places for name in classes):
        order = torch.tensor([places[name.lower()] for name in classes])
        return order, tuple(classes[int(i)] for i in order.argsort())
    return torch.arange(len(classes)), tuple(classes)


def save_model(stack: HuggingFaceStack, folder: Path, digest: bool = True) -> None:
    """Writes the model with its head, and what made its inputs, in place of what is there.

    Args:
        folder: what to make; `load_model` reads it, and `from_pretrained` the model in it.
        digest: marks the configuration with a digest of the weights, so that a policy tells the model from the one that it was made of.
    """
    model: Any = stack.model
    if digest:
        model.config._name_or_path = ""  # what it was made of is not what it is
        setattr(model.config, DIGEST, _digest(model))

    def fill(new: Path) -> None:
        model.save_pretrained(new)
        if stack.processor is not None:
            stack.processor.save_pretrained(new)
        if stack.head is not None:
            save_weights(new / HEAD, stack.head.state_dict())

    with quiet():
        atomic_replace(folder, fill, overwrite=True)


def without_layers(stack: HuggingFaceStack, layers: Sequence[int]) -> HuggingFaceStack:
    """The stack of the same model, from which all layers but `layers` are deleted; the given stack is taken over."""
    model = stack.model
    config: Any = model.config
    kept = [stack.routed[i] for i in layers]
    types = getattr(config, "layer_types", None)
    parent, _, name = stack.path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(kept))
    config.num_hidden_layers = len(kept)
    if types is not None:
        config.layer_types = [types[i] for i in layers]
    for i, layer in enumerate(kept):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = i  # type: ignore[assignment]
    pruned = HuggingFaceStack(model, head=stack.head, layers=stack.path, prompt_tokens=stack.prompt_tokens, prepare=stack.prepare)
    pruned.processor = stack.processor
    return pruned


def _mean_head(model: nn.Module, classes: int) -> nn.Module:
    width = width_of(model)
    if width is None:
        raise UserError(f"{type(model).__name__} has no configuration with a hidden_size, so no head can be added to it; set --model to a classifier")
    dropout = configured(model, "hidden_dropout_prob") or configured(model, "hidden_dropout") or 0.0
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8 if tensor.dim() else tensor.dtype).numpy().tobytes())
    return found.hexdigest()[:16]


@contextmanager
def _reading(folder: str) -> Iterator[None]:
    """Tells in one line what goes wrong while a model or a tokenizer is read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # other people's code, on other people's files
        reason = " ".join(str(error).split())
        name = type(error).__name__
        raise UserError(f"{folder} cannot be read ({name}: {reason[:200]}); set --model to a folder that save_pretrained wrote") from None
