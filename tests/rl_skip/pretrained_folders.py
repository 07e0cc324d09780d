"""Small random models in folders with all that belongs to them, and data to train them on."""

import gzip
import json
import random
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl_skip.tasks.tokens import trained_tokenizer

transformers = pytest.importorskip("transformers")

GOOD, BAD, FILLING = ["good", "great", "fine"], ["bad", "dull", "poor"], ["the", "film", "a", "plot", "is", "with", "some", "actors", "and", "music"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
SPEECH = SMALL | {
    "conv_dim": (8, 8),
    "conv_stride": (20, 16),
    "conv_kernel": (20, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 5,
}


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Sentences of 2 to 13 words, one of which says the class."""
    drawn = random.Random(seed)
    rows = []
    for n in range(count):
        words = drawn.choices(FILLING, k=drawn.randint(1, 12))
        words.insert(drawn.randrange(len(words) + 1), drawn.choice(GOOD if n % 2 else BAD))
        rows.append((" ".join(words), n % 2))
    return rows


def write_table(file: Path, count: int, *, seed: int = 0, names: tuple[str, str] = ("0", "1")) -> Path:
    """A TSV or CSV file of `sentences`, packed where its name says so."""
    separator = "\t" if ".tsv" in file.suffixes else ","
    lines = [separator.join(("sentence", "label")), *(separator.join((text, names[label])) for text, label in sentences(count, seed))]
    content = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def write_pairs(file: Path, count: int) -> Path:
    """A TSV file of pairs of `sentences` in the columns first and second; the class says whether both sentences have the same."""
    rows, others = sentences(count), sentences(count, seed=1)
    drawn = random.Random(2)
    drawn.shuffle(others)
    lines = [f"{first}\t{second}\t{int(a == b)}" for (first, a), (second, b) in zip(rows, others, strict=True)]
    file.write_text("\n".join(["first\tsecond\tlabel", *lines]) + "\n")
    return file


def save_bert(folder: Path, *, head: bool = False, names: tuple[str, ...] = ("0", "1"), tokenizer: bool = True, **more: Any) -> Path:
    """A BERT with a tokenizer trained on sentences, with or without a classifier; `more` goes into its configuration."""
    torch.manual_seed(0)
    made = trained_tokenizer([text for text, _ in sentences(200)], 300)
    options: dict[str, Any] = {**SMALL, "vocab_size": len(made), "max_position_embeddings": 40, "id2label": dict(enumerate(names))}
    config = transformers.BertConfig(**options | more, label2id={name: i for i, name in enumerate(names)})
    (transformers.BertForSequenceClassification if head else transformers.BertModel)(config).save_pretrained(folder)
    if tokenizer:
        made.save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """A ViT for images of 12 × 12, without a head, and how its pixels are to be."""
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**SMALL, image_size=12, patch_size=4)).save_pretrained(folder)
    described = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder


def write_recordings(folder: Path, count: int = 60) -> Path:
    """Tones of three classes, a wav file each."""
    folder.mkdir()
    for n in range(count):
        with wave.open(str(folder / f"{'abc'[n % 3]}_someone_{n // 3}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((1e4 * np.sin(np.arange(1000 + 20 * n) * 0.1 * (1 + n % 3))).astype(np.int16).tobytes())
    return folder


def save_wav2vec2(folder: Path, *, head: bool = True) -> Path:
    """A wav2vec2 at 16 kHz, with or without a head for three classes, a, b and c."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**SPEECH, id2label=dict(enumerate("abc")), label2id={"a": 0, "b": 1, "c": 2}, classifier_proj_size=16)
    (transformers.Wav2Vec2ForSequenceClassification if head else transformers.Wav2Vec2Model)(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder
