"""The task text on pairs of texts: what the model gets, what people see, and what is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rl_skip
from rl_skip import UserError
from rl_skip.core.task import Task
from rl_skip.measure.runs import read_run
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tables import read_tables
from rl_skip.tasks.tokens import padded, trained_tokenizer
from tests.rl_skip.pretrained_folders import SMALL, save_bert, sentences, write_pairs
from tests.rl_skip.run_config import run_config

transformers = pytest.importorskip("transformers")

PAIR = {"text_column": "first", "pair_column": "second"}
EVERY_LAYER = torch.ones(4, dtype=torch.bool)


def _save_tokenizer(folder: Path) -> Any:
    """A tokenizer that makes token types, as BERT's own does."""
    made = trained_tokenizer([text for text, _ in sentences(200)], 300)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, model_input_names=names, **made.special_tokens_map)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _inputs(task: Task) -> dict[str, Tensor]:
    inputs = task.load("test").inputs
    assert isinstance(inputs, dict)
    return inputs


def _outputs(task: Task, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # the head is new
    return rl_skip.routed_forward(task.build(NetworkConfig()).eval(), EVERY_LAYER, inputs).outputs


@pytest.mark.parametrize("limit", [128, 14])
def test_pairs_are_what_the_tokenizer_makes_of_them(limit: int, tmp_path: Path) -> None:
    data, folder = write_pairs(tmp_path / "a.tsv", 60), save_bert(tmp_path / "model")
    tokenizer = _save_tokenizer(folder)
    task = load_task("text", str(data), TaskOptions(model=str(folder), max_tokens=limit, **PAIR))
    inputs, rows = _inputs(task), read_tables(data, TaskOptions(**PAIR))[1]["test"]
    assert rows.second_texts is not None
    by_hand = tokenizer(rows.texts, rows.second_texts, truncation="longest_first", max_length=limit, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    for name, expected in by_hand.items():
        assert inputs[name].equal(expected), name
    assert (inputs["attention_mask"].sum(dim=1) == limit).any() == (limit == 14)
    short = inputs["attention_mask"].sum(dim=1).argsort()[:3]
    trimmed = task.load("test").take(short).inputs
    assert isinstance(trimmed, dict) and len({tensor.shape for tensor in trimmed.values()}) == 1


def test_each_column_has_a_padding_of_its_own() -> None:
    filled = padded({"input_ids": ([[5, 6, 7], [8]], 9), "token_type_ids": ([[0, 0, 1], [0]], 3)})
    expected = {"input_ids": [[5, 6, 7], [8, 9, 9]], "token_type_ids": [[0, 0, 1], [0, 3, 3]], "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    assert {name: column.tolist() for name, column in filled.items()} == expected


def test_the_longer_text_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("first\tsecond\tlabel\n" + "".join(f"good film\t{'dull ' * 30}\t{n % 2}\n" for n in range(20)))
    task = load_task("text", str(tmp_path / "a.tsv"), TaskOptions(model=str(save_bert(tmp_path / "model")), max_tokens=20, **PAIR))
    first, second = task.in_words(task.load("test"))[0].split("\n– ")  # type: ignore[misc]
    assert first == "good film" and 2 <= second.count("dull") < 12


def test_token_types_reach_the_model(tmp_path: Path) -> None:
    data, folder = write_pairs(tmp_path / "a.tsv", 60), save_bert(tmp_path / "model", head=True)
    _save_tokenizer(folder)
    task = load_task("text", str(data), TaskOptions(model=str(folder), **PAIR))
    inputs = _inputs(task)
    outputs = _outputs(task, inputs)
    with torch.no_grad():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        torch.testing.assert_close(outputs, model(**inputs).logits)
    without = _outputs(task, inputs | {"token_type_ids": torch.zeros_like(inputs["token_type_ids"])})
    assert ((outputs - without).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("name", ["ModernBert", "DistilBert", "Roberta"])
def test_models_without_token_types_get_none(name: str, tmp_path: Path) -> None:
    """RoBERTa takes them, but knows the type 0 alone."""
    data, folder = write_pairs(tmp_path / "a.tsv", 60), tmp_path / "model"
    tokenizer = _save_tokenizer(folder)
    assert "token_type_ids" in tokenizer("a", "film")
    sizes = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48} if name == "DistilBert" else SMALL
    types = {"type_vocab_size": 1} if name == "Roberta" else {}
    config = getattr(transformers, f"{name}Config")(vocab_size=len(tokenizer), max_position_embeddings=140, pad_token_id=0, **sizes, **types)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    task = load_task("text", str(data), TaskOptions(model=str(folder), **PAIR))
    assert set(_inputs(task)) == {"input_ids", "attention_mask"}
    assert _outputs(task, _inputs(task)).isfinite().all()


def test_from_scratch_both_texts_are_learnt_from_and_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("first\tsecond\tlabel\n" + "".join(f"the film {n}\tein Überfilm {n}\t{n % 2}\n" for n in range(50)))
    task = load_task("text", str(tmp_path / "a.tsv"), TaskOptions(**PAIR))
    stack, inputs = task.build(NetworkConfig(layers=4, width=32, heads=4)), _inputs(task)
    tokenizer: Any = stack.processor  # type: ignore[attr-defined]
    assert any("überfilm" in tokenizer.decode([token]) for token in inputs["input_ids"].unique().tolist())
    for row in inputs["input_ids"].tolist():
        assert row[0] == tokenizer.cls_token_id and row.count(tokenizer.sep_token_id) == 2
    rows = read_tables(tmp_path / "a.tsv", TaskOptions(**PAIR))[1]["test"]
    assert task.in_words(task.load("test")) == [f"{a}\n– {b.lower()}" for a, b in zip(rows.texts, rows.second_texts or (), strict=True)]  # type: ignore[misc]
    outputs = rl_skip.routed_forward(stack.eval(), EVERY_LAYER, inputs).outputs
    assert outputs.shape == (10, 2) and outputs.isfinite().all()


def test_an_empty_text_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("first\tsecond\tlabel\n" + "".join(f"a film\t\t{n % 2}\n" for n in range(20)))
    task = load_task("text", str(tmp_path / "a.tsv"), TaskOptions(**PAIR))
    assert (_inputs(task)["input_ids"][:, -2:] == 3).all(), "the separator twice, nothing between"
    assert set(task.in_words(task.load("test"))) == {"a film"}  # type: ignore[misc]


def test_a_run_knows_its_columns(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    for options, expected in ((asdict(TaskOptions(**PAIR)), "second"), (asdict(TaskOptions(text_column="first")), None)):
        config = run_config("text", NetworkConfig(), str(write_pairs(tmp_path / "a.tsv", 50)))
        config["task"]["options"] = options if expected else {name: value for name, value in options.items() if name != "pair_column"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        run = read_run(tmp_path)
        assert run.options.pair_column == expected
        words = run.load_task().in_words(run.load_task().load("test"))[0]  # type: ignore[misc]
        assert ("\n– " in words) == (expected is not None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text_column": "first", "pair_column": "third"}, "no column 'third', its columns are first, second, label; set --pair-column"),
        ({"text_column": "first", "pair_column": "first"}, "--text-column and --pair-column both name 'first'; set --pair-column"),
        ({"text_column": "first", "pair_column": "label"}, "--label-column and --pair-column both name 'label'; set --pair-column"),
        (PAIR | {"max_tokens": 4}, "4 tokens leave no room for two texts and the 3 tokens around them; set --max-tokens"),
    ],
)
def test_columns_that_cannot_be_are_refused(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        load_task("text", str(write_pairs(tmp_path / "a.tsv", 50)), TaskOptions(**options))


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv", "test.tsv"])
def test_every_split_needs_the_column(name: str, tmp_path: Path) -> None:
    for file in ("train.tsv", "dev.tsv", "test.tsv"):
        write_pairs(tmp_path / file, 50)
    (tmp_path / name).write_text("first\tlabel\na\t0\nb\t1\n")
    with pytest.raises(UserError, match=f"{name} has no column 'second', its columns are first, label; set --pair-column"):
        read_tables(tmp_path, TaskOptions(**PAIR))


def test_a_text_column_that_is_not_named_is_not_the_pairs_column_either(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
    with pytest.raises(UserError, match="--text-column and --pair-column both name 'sentence'"):
        read_tables(tmp_path / "a.tsv", TaskOptions(pair_column="sentence"))


@pytest.mark.parametrize("task", ["digits", "language", "hops"])
def test_tasks_without_texts_take_no_pairs(task: str, tmp_path: Path) -> None:
    data = None if task != "language" else str(write_pairs(tmp_path / "a.tsv", 50))
    with pytest.raises(UserError, match=f"the task '{task}' has no pairs of texts; leave out --pair-column, or set --task text"):
        load_task(task, data, TaskOptions(pair_column="second"))


def test_a_tokenizer_that_glues_texts_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model", tokenizer=False)
    tokenizer = trained_tokenizer([text for text, _ in sentences(200)], 300, for_language=True)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="model puts nothing between the texts of a pair; set --model"):
        load_task("text", str(write_pairs(tmp_path / "a.tsv", 50)), TaskOptions(model=str(folder), **PAIR))
