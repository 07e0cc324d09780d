"""Texts with classes, for a pretrained model or for a small one that is trained from scratch with its tokenizer."""

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from rl_skip.attached.classes import name_classes, order_of_model
from rl_skip.attached.library import require
from rl_skip.attached.pretrained import load_model, read_config, read_tokenizer, takes_token_types
from rl_skip.attached.vocabulary import most_tokens, pad_token_of
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import BundledTask
from rl_skip.tasks.options import TaskOptions, model_defaults, passes
from rl_skip.tasks.tables import LabelledTexts, read_tables
from rl_skip.tasks.tokens import no_embedding, padded, trained_tokenizer, vocabulary_for

__all__ = ["TEXT", "text"]


def text(path: Path, options: TaskOptions) -> Task:
    """The task `text`: each row a text or a pair of texts with a class, padded to the longest of its batch.

    Args:
        path: a TSV or CSV file, or a folder with one for each split; see `read_tables`.
        options: the model, the columns, the files, and where long texts are cut off.

    Raises:
        UserError: if the data or the model cannot be read, or do not fit each other.
    """
    require()
    config = read_config(options.model) if options.pretrained else None
    classes, tables, remarks = read_tables(path, options)
    limit = options.max_tokens
    if config is None:
        corpus = [*tables["train"].texts, *(tables["train"].second_texts or ())]
        tokenizer = trained_tokenizer(corpus, vocabulary_for(corpus))
    else:
        tokenizer = read_tokenizer(options.model)
        tokenizer.pad_token = pad_token_of(tokenizer, options.model)
        tables_order, classes = order_of_model(classes, config, options.model, options.label_order)
        limit = min(limit, tokenizer.model_max_length, most_tokens(tokenizer, config, options.model) or limit)
    tokenizer.model_max_length = limit  # so that whoever loads it with the model cuts texts off as training did
    if options.pair_column is not None:
        _check_pairs(tokenizer, limit, options)
    token_types = options.pair_column is not None and config is not None and takes_token_types(config)

    def labels(split: Split) -> Tensor:
        return tables[split].labels if config is None else tables_order[tables[split].labels]

    @cache
    def load(split: Split) -> Examples:
        table = tables[split]
        encoded = tokenizer(table.texts, table.second_texts, truncation=True, max_length=limit, padding=False)
        columns = {"input_ids": (encoded["input_ids"], tokenizer.pad_token_id)}
        if token_types and "token_type_ids" in encoded:
            columns["token_type_ids"] = encoded["token_type_ids"], tokenizer.pad_token_type_id
        return Examples(padded(columns), labels(split))

    def remarks_on(split: Split) -> tuple[str, ...]:
        lengths = load(split).inputs["attention_mask"].sum(dim=1)  # type: ignore[index]
        full = (lengths == limit).nonzero().squeeze(1)  # cut off, or just as long
        cut = _longer_than(limit, tables[split].take(full), tokenizer)
        return (f"{cut:,} of {len(lengths):,} {split} rows are longer than {limit} tokens and cut off there; see --max-tokens",) if cut else ()

    def network(size: NetworkConfig) -> LayerStack:
        if config is None:
            return _fresh_network(size, tokenizer, classes, limit)
        stack = load_model(options.model, classes, head=options.head, processor=tokenizer)
        stack.model.config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]  # decoders answer at the last token before these
        return stack

    def in_words(examples: Examples) -> list[str]:
        assert isinstance(examples.inputs, dict)
        if options.pair_column is None:
            return tokenizer.batch_decode(examples.inputs["input_ids"], skip_special_tokens=True)
        return ["\n– ".join(_texts_of_pair(tokenizer, row)) for row in examples.inputs["input_ids"].tolist()]

    told: Any = {"remarks": remarks, "remarks_on": remarks_on, "labels": labels}
    return Task("text", classes, load, no_embedding, limit, in_words, network=network, **told)


def _longer_than(limit: int, table: LabelledTexts, tokenizer: Any) -> int:
    """How many rows have more tokens."""
    if not table.texts:
        return 0
    return sum(len(row) > limit for row in tokenizer(table.texts, table.second_texts, truncation=False, verbose=False)["input_ids"])


def _check_pairs(tokenizer: Any, limit: int, options: TaskOptions) -> None:
    """Refuses a tokenizer that glues the texts of a pair, and rows with no room for both."""
    around, within_pair = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
    if within_pair <= around:
        raise UserError(f"the tokenizer in {options.model} puts nothing between the texts of a pair; set --model to one that does")
    if limit < within_pair + 2:
        raise UserError(f"{limit} tokens leave no room for two texts and the {within_pair} tokens around them; set --max-tokens higher")


def _texts_of_pair(tokenizer: Any, ids: list[int]) -> list[str]:
    """The texts between the tokens that stand around and between those of a pair, each in one line."""
    bounds = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    runs = [list(run) for bound, run in groupby(ids, key=bounds.__contains__) if not bound]
    return [text for run in runs if (text := " ".join(tokenizer.decode(run, skip_special_tokens=True).split()))]


def _fresh_network(size: NetworkConfig, tokenizer: Any, classes: tuple[str, ...], limit: int) -> LayerStack:
    """A small ModernBERT: pre-norm blocks, whose hidden state stands skips better than post-norm ones from scratch."""
    from rl_skip.attached.huggingface import HuggingFaceStack

    if size.stack != "blocks":
        raise UserError(f"the task 'text' builds plain blocks, not a {size.stack}; leave out --stack")
    transformers = require()
    dropouts = {name: size.dropout for name in ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=2 * size.width,
        max_position_embeddings=limit,
        layer_types=["full_attention"] * size.layers,
        classifier_pooling="mean",
        bos_token_id=special["cls_token_id"],
        eos_token_id=special["sep_token_id"],
        num_labels=len(classes),
        **special,
        **dropouts,
    )
    name_classes(config, classes)
    stack = HuggingFaceStack(transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa"))
    stack.processor = tokenizer
    return stack


FROM_SCRATCH = {"layers": 6, "width": 128, "dropout": 0.1, "eval_epochs": 2}
READ = frozenset({"text_column", "pair_column", "label_column", "train_file", "validation_file", "test_file", "max_tokens"})
TEXT = BundledTask(text, lambda given: FROM_SCRATCH | passes(given, 4, 8) | model_defaults(given), READ)
