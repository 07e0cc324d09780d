"""Tokens of texts: tokenizers trained on the data, and rows padded to one length."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.library import require
from rl_skip.core.errors import UserError

__all__ = ["character_tokenizer", "no_embedding", "padded", "trained_tokenizer", "vocabulary_for"]

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 512, 8192
CHARACTERS_PER_ENTRY = 64
"""A vocabulary grows with the data: an entry is worth having once it occurs a few times."""
LONGEST_PIECE = 10_000
"""Characters of a text that a tokenizer is trained on at a time: the time grows with the square of the longest word, and one may fill its text."""


def no_embedding(width: int) -> nn.Module:
    """The embedding of tasks whose model embeds its inputs itself: there is none."""
    raise UserError("this task's network is a model from transformers; it has no embedding of its own")


def vocabulary_for(texts: Iterable[str]) -> int:
    """How many entries a vocabulary for these texts should have."""
    return min(max(sum(map(len, texts)) // CHARACTERS_PER_ENTRY, SMALLEST_VOCABULARY), LARGEST_VOCABULARY)


def trained_tokenizer(texts: Sequence[str], vocabulary: int, *, for_language: bool = False) -> Any:
    """A tokenizer of byte pairs (Sennrich et al. 2016) trained on the texts; the same texts give the same tokenizer.

    Args:
        texts: what to train on. Those of classes are put in lower case; whatever bytes a text holds, no token is unknown.
        vocabulary: entries, at most.
        for_language: keeps the case, and puts nothing around a text, so that what it says can be gone on with.
    """
    tokenizers, transformers = require("tokenizers"), require()
    special = {} if for_language else SPECIAL
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    if not for_language:
        trained.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()])
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=not for_language)
    trained.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    pieces = (text[begin : begin + LONGEST_PIECE] for text in texts for begin in range(0, len(text), LONGEST_PIECE))
    trained.train_from_iterator(pieces, trainer)
    if not for_language:
        ends = [(special[name], trained.token_to_id(special[name])) for name in ("cls_token", "sep_token")]
        trained.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=trained, **special)


def character_tokenizer(text: str) -> Any:
    """A tokenizer with an entry for each character of the text, and one for all others."""
    tokenizers, transformers = require("tokenizers"), require()
    vocabulary = {"[UNK]": 0} | {character: i for i, character in enumerate(sorted(set(text)), start=1)}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    built.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", clean_up_tokenization_spaces=False)


def padded(columns: Mapping[str, tuple[Sequence[Sequence[int]], int]]) -> dict[str, Tensor]:
    """Rows of numbers of tokens, padded on the right to the longest.

    Args:
        columns: names, such as `input_ids`; to each its N rows, as long as those of the others, and what they are padded with.

    Returns:
        The columns and their `attention_mask`, (N, T) long each.
    """
    first, _ = next(iter(columns.values()))
    counts = torch.tensor([len(row) for row in first])
    mask = torch.arange(int(counts.max())) < counts.unsqueeze(1)
    filled = {name: torch.full(mask.shape, padding) for name, (_, padding) in columns.items()}
    for name, (rows, _) in columns.items():
        filled[name][mask] = torch.tensor([number for row in rows for number in row])
    return {**filled, "attention_mask": mask.long()}
