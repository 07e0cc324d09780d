"""Whether a tokenizer is the model's: which tokens the model has embeddings for, and how many positions a row may fill."""

from typing import Any

import torch

from rl_skip.attached.library import quiet, require
from rl_skip.core.errors import UserError

__all__ = ["most_tokens", "pad_token_of"]


def most_tokens(tokenizer: Any, config: Any, folder: str) -> int | None:
    """How many tokens a row of a model may have, once its tokenizer is known to fit it.

    Some models number the positions of a row from their padding token's number on (RoBERTa, MPNet), so that of 514 only 512 can be used.

    Args:
        tokenizer: what numbers the tokens; its padding token is compared where positions depend on it.
        config: the model's configuration.
        folder: where both are, for messages.

    Returns:
        The number of positions; None where the model names no bound.

    Raises:
        UserError: if the tokenizer has tokens that the model has no embedding for, or pads with a token that the model takes for a word.
    """
    text = config.get_text_config()
    _check_embeddings(tokenizer, getattr(text, "vocab_size", None), folder)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # XLNet says -1
        return None
    padding = _padding_position(config, positions)
    if padding is None:
        return positions
    if tokenizer.pad_token_id not in (None, padding):
        raise UserError(
            f"the tokenizer in {folder} pads with token {tokenizer.pad_token_id}, the model with {padding}: it is another model's; "
            f"write the model's own beside it: tokenizer.save_pretrained({folder!r})"
        )
    return positions - padding - 1


def pad_token_of(tokenizer: Any, folder: str) -> str:
    """The token with which rows are padded: the tokenizer's own, or else one that it has.

    Raises:
        UserError: if it has none that could be it.
    """
    token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    if token is None:
        raise UserError(
            f"the tokenizer in {folder} has no token to pad with; set tokenizer.pad_token to one that it knows, then "
            f"tokenizer.save_pretrained({folder!r})"
        )
    return str(token)


def _check_embeddings(tokenizer: Any, rows: Any, folder: str) -> None:
    if not isinstance(rows, int):  # models of characters or bytes, such as CANINE
        return
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if tokens > rows:
        raise UserError(
            f"the tokenizer in {folder} has {tokens} tokens, the model embeddings for {rows}: put the model's own tokenizer there, "
            f"or call model.resize_token_embeddings({tokens}) and save the model again"
        )


def _padding_position(config: Any, positions: int) -> int | None:
    """The padding token's number, where the positions of a row begin behind it."""
    with quiet(), torch.device("meta"):
        model = require().AutoModel.from_config(config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None and len(module.weight) == positions:
            return int(module.padding_idx)
    return None
