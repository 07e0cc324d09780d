"""The task text: tables as people have them, tokens, what is refused; and batches of like length, which change no result."""

import time
from pathlib import Path

import pytest
import torch

import rl_skip
from rl_skip import Examples, HuggingFaceStack, JumpPolicy, JumpRules, ObservationLayout, UserError
from rl_skip.core.inputs import lengths, trimmed
from rl_skip.measure.evaluation import all_routes, evaluate, evaluate_routes
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tables import read_tables
from rl_skip.tasks.tokens import trained_tokenizer
from tests.rl_skip.pretrained_folders import save_bert, sentences, write_table

transformers = pytest.importorskip("transformers")

# ------------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("name", ["all.tsv", "all.csv", "all.tsv.gz", "all.csv.gz"])
def test_a_single_file_is_split_in_three(name: str, tmp_path: Path) -> None:
    classes, parts, _ = read_tables(write_table(tmp_path / name, 50), TaskOptions())
    assert classes == ("0", "1")
    assert [len(parts[split].texts) for split in ("train", "validation", "test")] == [30, 10, 10]
    read = [(text, int(label)) for part in parts.values() for text, label in zip(part.texts, part.labels, strict=True)]
    assert sorted(read) == sorted(sentences(50))


def test_a_folder_names_its_splits(tmp_path: Path) -> None:
    for n, name in enumerate(("train.tsv.gz", "dev.csv", "test.tsv")):
        write_table(tmp_path / name, 20 + 2 * n, seed=n)
    write_table(tmp_path / "train_phrases.tsv", 40, seed=3)
    _, parts, _ = read_tables(tmp_path, TaskOptions())
    assert {split: part.texts for split, part in parts.items()} == {
        split: [text for text, _ in sentences(20 + 2 * n, n)] for n, split in enumerate(("train", "validation", "test"))
    }
    _, parts, _ = read_tables(tmp_path, TaskOptions(train_file="train_phrases.tsv"))
    assert parts["train"].texts == [text for text, _ in sentences(40, 3)]


def test_what_has_no_file_is_held_out_of_the_training_rows(tmp_path: Path) -> None:
    write_table(tmp_path / "train.tsv", 60)
    write_table(tmp_path / "test.tsv", 10, seed=1)
    _, parts, _ = read_tables(tmp_path, TaskOptions())
    assert [len(parts[split].texts) for split in ("train", "validation", "test")] == [50, 10, 10]
    assert not (parts["validation"].labels.float().mean() - 0.5).abs() > 1e-6
    assert parts["test"].texts == [text for text, _ in sentences(10, 1)]


def test_quotes_enclose_in_csv_and_are_literal_in_tsv(tmp_path: Path) -> None:
    rows = "label,text\n" + "".join(f'{n % 2},"a ""film"", new\nline {n}"\n' for n in range(20))
    (tmp_path / "a.csv").write_text(rows)
    _, parts, _ = read_tables(tmp_path / "a.csv", TaskOptions())
    assert all(text.startswith('a "film", new\nline ') for text in parts["train"].texts)
    (tmp_path / "a.tsv").write_text("\ufefflabel\ttext\n" + "".join(f'{n % 2}\t"a film" {n}\n' for n in range(20)), encoding="utf-8")
    _, parts, _ = read_tables(tmp_path / "a.tsv", TaskOptions())
    assert all(text.startswith('"a film" ') for text in parts["train"].texts)


def test_the_usual_columns_are_found_and_a_named_one_wins(tmp_path: Path) -> None:
    rows = "".join(f"text {n},{n % 2},{n % 3}\n" for n in range(30))
    (tmp_path / "a.csv").write_text("text,category,label\n" + rows)
    assert read_tables(tmp_path / "a.csv", TaskOptions())[0] == ("0", "1", "2")
    assert read_tables(tmp_path / "a.csv", TaskOptions(label_column="category"))[0] == ("0", "1")
    (tmp_path / "b.csv").write_text("text,category,other\n" + rows)
    assert read_tables(tmp_path / "b.csv", TaskOptions())[0] == ("0", "1")


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("words\tlabel\na\t0\n", {}, "no column 'sentence', its columns are words, label; set --text-column"),
        ("text\tclass\na\t0\n", {}, "no column 'label', its columns are text, class; set --label-column"),
        ("text\tlabel\na\t0\nb\n", {}, "has 1 columns in row 3"),
        ("", {}, "is empty"),
        ("text\tlabel\n", {}, "no rows below its column names"),
        ("text\tlabel\na\t0\nb\t0\n", {}, "holds the class '0' alone"),
        ("text\tlabel\na\t0\n", {"train_file": "more.tsv"}, "there is no file .*more.tsv; set --train-file"),
    ],
)
def test_tables_that_cannot_be_are_refused(content: str, options: dict[str, str], told: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UserError, match=told):
        read_tables(tmp_path / "a.tsv", TaskOptions(**options))


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    for name, told in (("a.tsv.gz", "cannot be read"), ("a.txt", "is not what the task 'text' reads"), ("folder", "--train-file")):
        with pytest.raises(UserError, match=told):
            read_tables(tmp_path / name, TaskOptions())
    write_table(tmp_path / "folder" / "train.tsv", 20)
    write_table(tmp_path / "folder" / "test.tsv", 20, names=("0", "2"))
    with pytest.raises(UserError, match="hold the class '2', which the training data lack"):
        read_tables(tmp_path / "folder", TaskOptions())


# ------------------------------------------------------------------------------------------------------------ models


def test_models_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_table(tmp_path / "a.tsv", 50)

    def refused(told: str, model: Path) -> None:
        with pytest.raises(UserError, match=told):
            options = TaskOptions(model=str(model))
            load_task("text", str(data), options).network(None)  # type: ignore[misc, arg-type]

    refused("there is no folder .*nowhere with a model; set --model", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds no model, it has no config.json", tmp_path / "empty")
    refused("has no tokenizer; write the model's beside it", save_bert(tmp_path / "mute", tokenizer=False))
    refused("has 3 classes, the data have 2; set --data", save_bert(tmp_path / "three", head=True, names=("a", "b", "c")))
    (save_bert(tmp_path / "bare") / "model.safetensors").unlink()
    refused("bare has a config.json and no model.safetensors", tmp_path / "bare")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused(r"this needs transformers; pip install 'rl-skip\[huggingface\]'", tmp_path / "other")


def test_labels_that_the_model_names_are_put_in_its_order(tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.tsv", 50, names=("negative", "positive"))
    folder = save_bert(tmp_path / "model", head=True, names=("POSITIVE", "NEGATIVE"))
    task, plain = (load_task("text", str(data), TaskOptions(model=model)) for model in (str(folder), "none"))
    assert task.classes == ("positive", "negative") and plain.classes == ("negative", "positive")
    assert task.load("train").labels.equal(1 - plain.load("train").labels)


def test_a_backbone_gets_a_head_on_the_mean_of_its_real_tokens(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "a.tsv", 50), save_bert(tmp_path / "model")
    task = load_task("text", str(data), TaskOptions(model=str(folder), head="mean"))
    stack = task.build(None).eval()  # type: ignore[arg-type]
    inputs = task.load("test").inputs
    assert isinstance(stack, HuggingFaceStack) and isinstance(inputs, dict)
    outputs = rl_skip.routed_forward(stack, torch.ones(4, dtype=torch.bool), inputs).outputs
    hidden = transformers.AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    for b, row in enumerate(hidden):
        mean = row[: int(inputs["attention_mask"][b].sum())].mean(dim=0)
        torch.testing.assert_close(outputs[b], stack.head(mean))


def test_long_texts_are_cut_off(tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.tsv", 50)
    assert load_task("text", str(data), TaskOptions(max_tokens=6)).load("train").inputs["input_ids"].shape == (30, 6)  # type: ignore[index, call-overload]


def test_the_same_texts_give_the_same_tokenizer() -> None:
    texts = [text for text, _ in sentences(300)]
    first, second = (trained_tokenizer(texts, 400) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first("Ünknown words")["input_ids"] == second("Ünknown words")["input_ids"]
    assert first.decode(first("the ünknown film")["input_ids"], skip_special_tokens=True).strip() == "the ünknown film"


# ------------------------------------------------------------------------------------------------------------ lengths


def _examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(12) < torch.randint(2, 10, (37, 1), generator=generator)
    ids = torch.randint(5, 60, (37, 12), generator=generator) * mask
    return Examples({"input_ids": ids, "attention_mask": mask.long()}, torch.randint(2, (37,), generator=generator))


def test_padding_that_no_row_needs_is_cut_off() -> None:
    examples = _examples()
    taken = examples.take(torch.tensor([3, 5])).inputs
    longest = int(examples.inputs["attention_mask"][[3, 5]].sum(dim=1).max())  # type: ignore[index, call-overload]
    assert taken["input_ids"].shape == (2, longest)  # type: ignore[index, call-overload]
    left = {"input_ids": torch.tensor([[0, 0, 7], [0, 8, 9]]), "attention_mask": torch.tensor([[0, 0, 1], [0, 1, 1]])}
    assert trimmed(left)["input_ids"].equal(left["input_ids"])  # type: ignore[index, call-overload]
    assert lengths(left).tolist() == [3, 3]  # type: ignore[union-attr]
    assert lengths(torch.zeros(3, 2)) is None


def test_rows_of_like_length_run_together_and_results_stay_in_order(tmp_path: Path) -> None:
    """Against one row at a time, as it is: no batches, no padding to share."""
    from tests.rl_skip.huggingface_models import build

    stack, examples = HuggingFaceStack(build("bert")), _examples()
    torch.manual_seed(1)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(32, 5)))
    task = rl_skip.Task("marks", ("no", "yes"), lambda _split: examples, embedding=lambda _width: torch.nn.Identity(), tokens=8)
    found = evaluate(stack, policy, task, examples, price=0.1, batch_size=8)
    routes = all_routes(5, False)
    correct, compute = evaluate_routes(stack, task, examples, routes)
    assert found.distinct_routes > 1
    for n in range(len(examples)):
        one = examples.take(slice(n, n + 1))
        alone = evaluate(stack, policy, task, one, price=0.1)
        assert alone.route.equal(found.route[n : n + 1]) and alone.prediction.equal(found.prediction[n : n + 1])
        torch.testing.assert_close(alone.compute_by_row, found.compute_by_row[n : n + 1])
        ours = evaluate(stack, routes[3], task, one)
        assert ours.correct[0] == correct[3, n] and abs(float(ours.compute_by_row[0] - compute[3, n])) < 1e-6


def test_a_word_that_fills_its_text_takes_no_longer_than_other_texts() -> None:
    """Byte pairs of one word of a million letters took minutes."""
    begun = time.process_time()
    tokenizer = trained_tokenizer(["good words", "a" * 1_000_000], 512)
    assert tokenizer.decode(tokenizer("good words")["input_ids"], skip_special_tokens=True).strip() == "good words"
    assert time.process_time() - begun < 20
