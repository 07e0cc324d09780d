"""Tokenizers and the models that they lie beside: what does not fit is said before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl_skip import UserError, load_task
from rl_skip.attached.pretrained import load_model, read_config, read_tokenizer
from rl_skip.attached.vocabulary import most_tokens
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tokens import trained_tokenizer
from tests.rl_skip.pretrained_folders import SMALL, save_bert, sentences, write_table

transformers = pytest.importorskip("transformers")


def saved(folder: Path, kind: str, config: str, tokenizer: Any = None, **options: Any) -> str:
    """A small random model with its tokenizer, which pads with token 0."""
    made = trained_tokenizer([text for text, _ in sentences(200)], 300) if tokenizer is None else tokenizer
    getattr(transformers, kind)(getattr(transformers, config)(**{"vocab_size": len(made), **options})).save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)


def roberta(folder: Path, **options: Any) -> str:
    return saved(folder, "RobertaModel", "RobertaConfig", **SMALL | {"max_position_embeddings": 14, "pad_token_id": 0} | options)


def gpt2(folder: Path, **options: Any) -> str:
    small = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 16, "bos_token_id": 2, "eos_token_id": 2}
    return saved(folder, "GPT2LMHeadModel", "GPT2Config", **small | options)


@pytest.mark.parametrize("padding", [0, 1])
def test_positions_that_begin_behind_the_padding_token(padding: int, tmp_path: Path) -> None:
    """As many as are said run; one more does not."""
    tokenizer = trained_tokenizer([text for text, _ in sentences(200)], 300)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    folder = roberta(tmp_path / "model", tokenizer=tokenizer, pad_token_id=padding)
    limit = most_tokens(read_tokenizer(folder), read_config(folder), folder)
    assert limit == 14 - padding - 1
    model = load_model(folder, ("a", "b")).model.eval()
    model(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


def test_texts_are_cut_off_at_the_last_position(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data.tsv", 60)
    task = load_task("text", str(data), TaskOptions(model=roberta(tmp_path / "model")))
    inputs = task.load("test").inputs
    assert isinstance(inputs, dict) and inputs["input_ids"].shape[1] == 13 == task.tokens
    assert task.build(None).processor.model_max_length == 13  # type: ignore[arg-type]


def test_rows_of_a_language_model_end_at_its_last_position(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(" ".join(text for text, _ in sentences(600)))
    folder = gpt2(tmp_path / "model")
    task = load_task("language", str(tmp_path / "book.txt"), TaskOptions(model=folder, prompt_tokens=4))
    assert task.tokens == 16 and task.remarks == ("rows have 16 tokens, since the model has no more positions, and not the 128 of --max-tokens",)
    stack, rows = task.build(None), task.load("test").take(slice(0, 2)).inputs  # type: ignore[arg-type]
    assert stack.finish(stack.begin(rows)).shape[:2] == (2, 16)
    with pytest.raises(UserError, match="a prompt of 32 tokens leaves none of 16 to count"):
        load_task("language", str(tmp_path / "book.txt"), TaskOptions(model=folder))


@pytest.mark.parametrize("task", ["text", "language"])
def test_more_tokens_than_embeddings(task: str, tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "model", vocab_size=290)
    (tmp_path / "data.tsv").write_text(" ".join(text for text, _ in sentences(600)) if task == "language" else "")
    data = tmp_path / "data.tsv" if task == "language" else write_table(tmp_path / "data.tsv", 60)
    tokens = len(read_tokenizer(folder))
    with pytest.raises(UserError, match=rf"has {tokens} tokens, the model embeddings for 290: .* model.resize_token_embeddings\({tokens}\)"):
        load_task(task, str(data), TaskOptions(model=folder, **({"prompt_tokens": 4} if task == "language" else {})))


def test_a_tokenizer_that_pads_with_another_token_than_positions_begin_behind(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "data.tsv", 60), roberta(tmp_path / "model", pad_token_id=1)
    with pytest.raises(UserError, match="pads with token 0, the model with 1: it is another model's"):
        load_task("text", str(data), TaskOptions(model=folder))


def test_a_tokenizer_without_a_padding_token(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data.tsv", 60)
    tokenizer = trained_tokenizer([text for text, _ in sentences(200)], 300, for_language=True)
    folder = gpt2(tmp_path / "model", tokenizer=tokenizer)
    with pytest.raises(UserError, match="has no token to pad with; set tokenizer.pad_token"):
        load_task("text", str(data), TaskOptions(model=folder))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(2)
    tokenizer.save_pretrained(folder)
    load_task.cache_clear()
    inputs = load_task("text", str(data), TaskOptions(model=folder)).load("train").inputs
    assert isinstance(inputs, dict) and set(inputs["input_ids"][inputs["attention_mask"] == 0].tolist()) == {2}


def test_weights_in_a_pickle_alone(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "data.tsv", 60), save_bert(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="has pytorch_model.bin, which is not read since it can hold code, and no model.safetensors; .* --model"):
        load_task("text", str(data), TaskOptions(model=str(folder)))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has a config.json and no model.safetensors"):
        load_task("text", str(data), TaskOptions(model=str(folder)))


def test_no_tokenizer(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "data.tsv", 60), save_bert(tmp_path / "model", tokenizer=False)
    with pytest.raises(UserError, match="has no tokenizer; write the model's beside it"):
        load_task("text", str(data), TaskOptions(model=str(folder)))
