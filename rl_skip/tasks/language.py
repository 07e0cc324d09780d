"""A text, and what comes next in it: causal language modelling from scratch, each row of tokens on its own route."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.library import require
from rl_skip.attached.pretrained import load_model, read_config, read_tokenizer
from rl_skip.attached.vocabulary import most_tokens
from rl_skip.core.bounded import read_bytes
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import BundledTask
from rl_skip.tasks.decoding import decoded
from rl_skip.tasks.options import TaskOptions, model_defaults, passes
from rl_skip.tasks.reading import reading
from rl_skip.tasks.tokens import character_tokenizer, no_embedding, trained_tokenizer, vocabulary_for

__all__ = ["LANGUAGE", "LanguageTask", "language"]

EXPECTED = "a text file in UTF-8"
SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
MOST_CHARACTERS = 256
"""With more different characters than these, tokens are pairs of bytes, not single characters."""
NOT_COUNTED = -100
LONGEST = 1024


@dataclass(frozen=True)
class LanguageTask(Task):
    """Rows of tokens; the score of a row is the geometric mean of the probabilities of the tokens that follow its prompt, exp(−loss)."""

    characters_per_token: float = 1.0

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), mean cross-entropy of the tokens that are counted; outputs (B, T, V), labels (B, T) with −100 where none is."""
        losses = cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NOT_COUNTED, reduction="none")
        counted = (labels[:, 1:] != NOT_COUNTED).sum(dim=1).clamp(min=1)
        return losses.view(len(labels), -1).sum(dim=1) / counted

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), exp(−loss)."""
        return torch.exp(-self.loss(outputs, labels))

    def probability(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), exp(−loss)."""
        return self.score(outputs, labels)

    def prediction(self, outputs: Tensor) -> Tensor:
        """(B,) long, zeros: all rows are of one class."""
        return torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)

    def class_of(self, labels: Tensor) -> Tensor:
        """(B,) long, zeros: all rows are of one class."""
        return torch.zeros(len(labels), dtype=torch.long, device=labels.device)

    def majority_score(self, validation: Tensor, test: Tensor) -> Tensor:
        """(N,), the score of each test row where every token has the probability of its frequency on validation data."""
        known = validation[validation != NOT_COUNTED]
        counts = torch.bincount(known, minlength=int(max(known.max(), test.max())) + 1).double() + 1
        log_frequency = (counts / counts.sum()).log()
        counted = test != NOT_COUNTED
        return torch.exp((log_frequency[test.clamp(min=0)] * counted).sum(dim=1) / counted.sum(dim=1)).float()

    def measures(self, score: Tensor) -> dict[str, float]:
        """Bits per character, of rows that all count as many tokens."""
        return {"bits_per_character": float(-score.double().log2().mean()) / self.characters_per_token}


def language(path: Path, options: TaskOptions) -> Task:
    """The task `language`: the first 90% of a text are train, 5% validation, 5% test, cut into rows of `max_tokens`.

    The policy looks at the first `prompt_tokens` of a row, and the loss is counted on those after them: what is measured
    is what generation does, which reads a prompt, chooses a route, and goes on. Training rows begin where the last one's prompt
    did not reach, so that every character is counted about once.

    Args:
        path: the text.
        options: how long rows and prompts are, and a model with its tokenizer to go on with.

    Raises:
        UserError: if the text cannot be read or is too short.
    """
    require()
    rows, prompt = options.max_tokens, options.prompt_tokens
    remarks: tuple[str, ...] = ()
    if options.pretrained:
        tokenizer = read_tokenizer(options.model)
        positions = most_tokens(tokenizer, read_config(options.model), options.model) or rows
        if positions < rows:
            rows, remarks = positions, (f"rows have {positions} tokens, since the model has no more positions, and not the {rows} of --max-tokens",)
    if prompt >= rows:
        raise UserError(f"a prompt of {prompt} tokens leaves none of {rows} to count; set --prompt-tokens below --max-tokens")
    with reading(path, EXPECTED):
        text = decoded(read_bytes(path, f"set --data to {EXPECTED}"), path, EXPECTED)
    if not text.strip():
        raise UserError(f"{path} is empty; set --data to {EXPECTED}")
    parts = {split: text[round(low * len(text)) : round(high * len(text))] for split, (low, high) in SHARES.items()}
    if not options.pretrained:
        tokenizer = _tokenizer(parts["train"])
    ids = {split: _ids(tokenizer, share, rows, path) for split, share in parts.items()}

    @cache
    def load(split: Split) -> Examples:
        tokens = ids[split].unfold(0, rows, rows - prompt).clone()  # (N, T)
        labels = tokens.clone()
        labels[:, :prompt] = NOT_COUNTED
        return Examples({"input_ids": tokens}, labels)

    def network(size: NetworkConfig) -> LayerStack:
        if options.pretrained:
            return load_model(options.model, processor=tokenizer, prompt_tokens=prompt)
        return _fresh_network(size, tokenizer, prompt)

    def in_words(examples: Examples) -> list[str]:
        assert isinstance(examples.inputs, dict)
        return tokenizer.batch_decode(examples.inputs["input_ids"])

    def remarks_on(split: Split) -> tuple[str, ...]:
        left = (len(ids[split]) - rows) % (rows - prompt)
        unknown = 0 if tokenizer.unk_token_id is None else int((ids[split] == tokenizer.unk_token_id).sum())
        told = {f"the last {left:,} tokens of {split} fill no row of {rows}, and are left out": left}
        told[f"{unknown:,} of {len(ids[split]):,} tokens of {split} stand for characters that the training part lacks"] = unknown
        return tuple(sentence for sentence, count in told.items() if count)

    per_token = len(parts["validation"]) / max(len(ids["validation"]), 1)
    names: Any = {"name": "language", "classes": ("text",), "score_name": "token likelihood"}
    names |= {"in_words": in_words, "remarks": remarks, "remarks_on": remarks_on, "labels": lambda split: load(split).labels}
    return LanguageTask(**names, load=load, embedding=no_embedding, tokens=rows, network=network, characters_per_token=per_token)


def _tokenizer(text: str) -> Any:
    if len(set(text)) <= MOST_CHARACTERS:
        return character_tokenizer(text)
    return trained_tokenizer(text.splitlines(keepends=True), vocabulary_for([text]), for_language=True)


def _ids(tokenizer: Any, text: str, rows: int, path: Path) -> Tensor:
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    if len(ids) < 2 * rows:
        raise UserError(f"a split of {path} has {len(ids)} tokens, too few for rows of {rows}; set --data to a longer text, or --max-tokens to fewer")
    return ids


def _fresh_network(size: NetworkConfig, tokenizer: Any, prompt: int) -> LayerStack:
    """A small Llama."""
    if size.stack != "blocks":
        raise UserError(f"the task 'language' builds plain blocks, not a {size.stack}; leave out --stack")
    transformers = require()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=8 * size.width // 3,
        max_position_embeddings=LONGEST,
        attention_dropout=size.dropout,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    stack = HuggingFaceStack(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), prompt_tokens=prompt)
    stack.processor = tokenizer
    return stack


FROM_SCRATCH = {
    "layers": 8,
    "width": 128,
    "max_tokens": 128,
    "prompt_tokens": 32,
    "price_range": (0.003, 0.3),
    "score": "probability",
    "batch_size": 32,
    "eval_epochs": 2,
}
LANGUAGE = BundledTask(
    language,
    lambda given: FROM_SCRATCH | passes(given, 4, 6) | model_defaults(given),
    frozenset({"max_tokens", "prompt_tokens"}),
)
