"""Models from transformers in folders: read with their head, and their tokenizers. transformers is imported on first use."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from rl_skip.attached.classes import Head, has_classifier, name_classes
from rl_skip.attached.finding import configured, find_layers, width_of
from rl_skip.attached.heads import AttentionHead, mean_head
from rl_skip.attached.huggingface import HEAD, HuggingFaceStack
from rl_skip.attached.identity import DIGEST, check_described, check_identity
from rl_skip.attached.library import quiet, require
from rl_skip.attached.names import is_read
from rl_skip.core.bounded import MOST_LAYERS, checked_file, checked_header, most_unpacked, read_json
from rl_skip.core.errors import UserError
from rl_skip.core.finite import refuse_not_finite
from rl_skip.core.kinds import NetworkKind
from rl_skip.core.seal import check_sealed, is_sealed, require_seal
from rl_skip.core.stack import LayerStack
from rl_skip.export.weights import read_weights

if TYPE_CHECKING:
    from rl_skip.export.description import Description

__all__ = [
    "ATTACHED",
    "load_model",
    "read_config",
    "read_described",
    "read_extractor",
    "read_processor",
    "read_tokenizer",
    "takes_token_types",
]

OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
PICKLED = ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack")
INDEX = "model.safetensors.index.json"
"""Which file has which weight, where a model's are in several."""
SAVE_ANEW = "write the model with save_pretrained into a folder, and set --model to that"
LARGEST_BESIDE = 2**30
"""Of the files beside the weights: configurations, vocabularies, merges."""
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")


def read_config(folder: str) -> Any:
    """The configuration of the model in a folder.

    Raises:
        UserError: if there is none, or its weights are not in safetensors.
    """
    transformers = require()
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} with a model; set --model to one that save_pretrained wrote")
    if not Path(folder, "config.json").is_file():
        raise UserError(f"{folder} holds no model, it has no config.json; set --model to a folder that save_pretrained wrote")
    _check_weights(folder)
    _check_files(folder)
    with _reading(folder), quiet():
        return transformers.AutoConfig.from_pretrained(folder, **OFFLINE)


def read_tokenizer(folder: str) -> Any:
    """The tokenizer in a folder.

    Raises:
        UserError: if there is none.
    """
    if not any(Path(folder, name).is_file() for name in TOKENIZERS):  # transformers would make an empty one
        raise UserError(f"{folder} has no tokenizer; write the model's beside it: tokenizer.save_pretrained({folder!r})")
    _check_files(folder)
    with _reading(folder), quiet():
        return require().AutoTokenizer.from_pretrained(folder, **OFFLINE)


def read_extractor(folder: str) -> Any:
    """What makes a speech model's inputs of waveforms; where the folder has none, waveforms of 16 kHz are brought to mean 0 and deviation 1."""
    transformers = require()
    _check_files(folder)
    with _reading(folder), quiet():
        if Path(folder, "preprocessor_config.json").is_file():
            return transformers.AutoFeatureExtractor.from_pretrained(folder, **OFFLINE)
        return transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)


def read_processor(folder: str) -> Any:
    """What makes the inputs of the model in a folder: a tokenizer, an image processor or a feature extractor; None: there is none."""
    transformers = require()
    if not Path(folder, "preprocessor_config.json").is_file():
        return read_tokenizer(folder) if any(Path(folder, name).is_file() for name in TOKENIZERS) else None
    reader = transformers.AutoImageProcessor if hasattr(read_config(folder), "image_size") else transformers.AutoFeatureExtractor
    with _reading(folder), quiet():
        return reader.from_pretrained(folder, **OFFLINE)


def load_model(
    folder: str, classes: Sequence[str] | None = None, *, head: Head = "standard", processor: Any = None, **options: Any
) -> HuggingFaceStack:
    """The model in a folder as a stack: a classifier with its own head, a language model, or a backbone with a fresh head.

    Args:
        folder: what `save_pretrained` wrote, or `HuggingFaceStack.write_model`.
        classes: the names of the classes in the model's order, with which a backbone gets its head; None: a head must be there, if one is needed.
        head: what a backbone gets. "standard": the classifier that transformers has for such a model, "mean" where it has none.
            "mean": a norm and two linear layers on the mean over its tokens, beside the model. "attention": the same on a mean that learns where
            to look. One that is saved beside the model stays what it is.
        processor: what made the inputs, to be saved beside the model.
        options: more arguments of `HuggingFaceStack`.

    Raises:
        UserError: if there is no model, a file is not as `write_model` wrote it, its layers are not found, or it has another number of classes.
    """
    config, saved_head = read_config(folder), Path(folder, HEAD)
    if is_sealed(Path(folder)):
        check_sealed(Path(folder), whole=True)
    if saved_head.is_file() and classes is not None and config.num_labels != len(classes):
        raise UserError(f"the head in {folder} has {config.num_labels} classes, the data have {len(classes)}; set --data to data with as many")
    if classes is not None:
        name_classes(config, classes)
    _check_depth(folder, config)
    model_class, beside = _class_of(folder, config, classes is not None and not saved_head.is_file(), head)
    _check_size(folder, config, model_class)
    with _reading(folder), quiet():
        weights = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        model, found = model_class.from_pretrained(folder, config=config, **OFFLINE, **weights)
    if saved_head.is_file() or beside:
        attends = _attends(saved_head) if saved_head.is_file() else head == "attention"
        options["head"] = _head_beside(model, config.num_labels, attends)
    if saved_head.is_file():
        options["head"].load_state_dict(read_weights(saved_head, options["head"].state_dict()))
    stack = HuggingFaceStack(model, **options)
    refuse_not_finite(stack, folder, "load another copy of the model")
    stack.processor, stack.fresh = processor, tuple(sorted(found["missing_keys"]))
    return stack


def _class_of(folder: str, config: Any, classifies: bool, head: Head) -> tuple[Any, bool]:
    """The class of transformers that the model is loaded as, and whether it gets a head beside it."""
    transformers, name = require(), next(iter(config.architectures or ()), "")
    if classifies and not has_classifier(config):
        classifier = _classifier_for(config) if head == "standard" else None
        return classifier or transformers.AutoModel, classifier is None
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise UserError(f"{folder} holds a {name or 'model of an unnamed class'}, which transformers does not know; set --model to another")
    return model_class, False


def _classifier_for(config: Any) -> Any:
    """The class of transformers that puts a classifier on models of a configuration; None: there is none."""
    for inputs in ("SEQUENCE", "IMAGE", "AUDIO"):
        known = getattr(require(), f"MODEL_FOR_{inputs}_CLASSIFICATION_MAPPING").get(type(config), None)
        if known is not None:
            return known[0] if isinstance(known, tuple) else known
    return None


def takes_token_types(config: Any) -> bool:
    """Whether the model of a configuration can be told which of two texts a token belongs to, by `token_type_ids`."""
    transformers = require()
    model_class = getattr(transformers, next(iter(config.architectures or ()), ""), None) or transformers.MODEL_MAPPING.get(type(config), None)
    forward = getattr(model_class, "forward", None)
    return forward is not None and "token_type_ids" in inspect.signature(forward).parameters and getattr(config, "type_vocab_size", 2) > 1


def _head_beside(model: nn.Module, classes: int, attends: bool) -> nn.Module:
    width = width_of(model, find_layers(model)[0])
    if width is None:
        raise UserError(f"{type(model).__name__} has no configuration with a hidden_size, so no head can be added to it; set --model to a classifier")
    dropout = configured(model, "hidden_dropout_prob") or configured(model, "hidden_dropout") or 0.0
    return (AttentionHead if attends else mean_head)(width, classes, dropout)


def _attends(saved: Path) -> bool:
    """Whether a saved head is one that learns where to look, by the names of its weights."""
    with checked_header(saved, SAVE_ANEW), safe_open(saved, framework="pt") as opened:
        return "score.weight" in opened.keys()  # noqa: SIM118, it is no dictionary


def _check_weights(folder: str) -> None:
    """Refuses a model whose weights are in other files alone, which can hold code."""
    if any(file.name != HEAD for file in Path(folder).glob("*.safetensors")):
        return
    others = sorted(file.name for pattern in PICKLED for file in Path(folder).glob(pattern))
    found = f"{others[0]}, which is not read since it can hold code, and" if others else "a config.json and"
    raise UserError(
        f"{folder} has {found} no model.safetensors; load the model with from_pretrained, write it with save_pretrained into a folder, "
        "and set --model to that"
    )


def _check_files(folder: str) -> None:
    """Refuses a folder with a file on which its readers would wait or run out of memory, or that leads them to files elsewhere."""
    for file in Path(folder).iterdir():
        if file.is_dir():
            continue
        if file.suffix == ".safetensors":
            with checked_header(file, SAVE_ANEW):
                pass
        elif is_read(file.name):
            checked_file(file, SAVE_ANEW, LARGEST_BESIDE)
    index = Path(folder, INDEX)
    parts = read_json(index, SAVE_ANEW) if index.is_file() else {}
    names = parts.get("weight_map", {}) if isinstance(parts, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and Path(name).name == name for name in names.values()):
        raise UserError(f"{index} names files that are not beside it; {SAVE_ANEW}")


def _check_depth(folder: str, config: Any) -> None:
    """Refuses a configuration with more layers than would ever be built."""
    values = config.to_dict()
    for part in (values, *(part for part in values.values() if isinstance(part, dict))):  # a vision or text model has its own
        for name, value in part.items():
            if "layers" in str(name) and isinstance(value, int) and value > MOST_LAYERS:
                raise UserError(f"{folder}/config.json: {name} is {value:,}, and a model has at most {MOST_LAYERS:,}; {SAVE_ANEW}")


def _check_size(folder: str, config: Any, model_class: Any) -> None:
    """Refuses a configuration of far more weights than the folder holds, before memory is taken for them."""
    most = most_unpacked(sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")))
    make = getattr(model_class, "from_config", None) or model_class._from_config
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), quiet():
            size = sum(weight.numel() * weight.element_size() for weight in make(config).parameters())
    except Exception:  # a class that cannot be made without memory, or a configuration of which loading tells what is wrong
        return
    if size > most:
        raise UserError(f"{folder}/config.json describes {size:,} bytes of weights, and the files there allow {most:,}; {SAVE_ANEW}")


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


def read_described(folder: Path, described: dict[str, Any]) -> HuggingFaceStack:
    """The model in a folder that a policy was saved for, or that was pruned; one that was trained here must be as it was written."""
    if DIGEST in (described.get("config") or {}):
        require_seal(folder)
    stack = load_model(str(folder), layers=described["layers"], prompt_tokens=described.get("prompt_tokens"))
    if drawn := [name for name in stack.fresh if name.startswith(f"{stack.path}.")]:
        raise UserError(f"{folder} lacks weights of its layers, {drawn[0]} among them, so that it is another model; write it anew")
    return stack


def _check_model(description: "Description", stack: LayerStack, file: Path) -> None:
    assert isinstance(stack, HuggingFaceStack)
    check_identity(description, stack.model, stack.path, None, file)


ATTACHED = NetworkKind(check_described, _build, _missing, read_described, _check_model)
"""Models that their user has; the kind "attached" in a description."""
