"""The task language: scores against a plain loop, a run that learns, and what generates with its policy attached."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import rl_skip
import train
from benchmarks.exits import print_tables
from rl_skip.cli.generate import generate
from rl_skip.cli.main import main
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tokens import character_tokenizer, trained_tokenizer
from tests.rl_skip.huggingface_models import pruned

transformers = pytest.importorskip("transformers")
ROW, PROMPT = 24, 8
VERSE = "the cat sat on the mat, and the dog ran to the cat.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    (folder / "verse.txt").write_text(VERSE * 120)
    size = ["--layers", "4", "--width", "32", "--max-tokens", str(ROW), "--prompt-tokens", str(PROMPT), "--learning-rate", "3e-3"]
    flags = ["--warmup-epochs", "10", "--epochs", "2", "--threads", "1", "--batch-size", "16", *size]
    assert train.main(["--task", "language", "--data", str(folder / "verse.txt"), "--out", str(folder / "run"), *flags]) == 0
    return folder / "run"


def test_a_row_scores_the_probability_of_what_follows_its_prompt(tmp_path: Path) -> None:
    (tmp_path / "verse.txt").write_text(VERSE * 30)
    task = load_task("language", str(tmp_path / "verse.txt"), TaskOptions(max_tokens=ROW, prompt_tokens=PROMPT))
    rows = task.load("test").take(slice(0, 3))
    outputs = torch.randn(3, ROW, 40, generator=torch.Generator().manual_seed(0))
    for b in range(3):
        ids = rows.inputs["input_ids"][b]  # type: ignore[index, call-overload]
        losses = [-math.log(float(outputs[b, t].softmax(dim=0)[ids[t + 1]])) for t in range(PROMPT - 1, ROW - 1)]
        mean = sum(losses) / len(losses)
        assert float(task.loss(outputs, rows.labels)[b]) == pytest.approx(mean, rel=1e-5)
        assert float(task.score(outputs, rows.labels)[b]) == pytest.approx(math.exp(-mean), rel=1e-5)
    score = torch.tensor([0.5, 0.25])
    assert task.measures(score) == {"bits_per_character": pytest.approx(1.5)}


def test_every_character_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "verse.txt").write_text("".join(chr(200 + n) for n in range(200)) * 6)  # few enough to be told apart
    task = load_task("language", str(tmp_path / "verse.txt"), TaskOptions(max_tokens=ROW, prompt_tokens=PROMPT))
    labels = task.load("train").labels
    counted = labels[labels != -100]
    assert (labels[:, :PROMPT] == -100).all()
    assert counted[:150].tolist() == [PROMPT + 1 + n for n in range(150)]


def test_a_run_learns_and_tells_bits_per_character(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["full depth"]["bits_per_character"] < 1.5 < math.log2(len(set(VERSE)))
    capsys.readouterr()
    assert main(["eval", str(run), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_character"] == pytest.approx(report["policy"]["bits_per_character"])
    assert main(["eval", str(run), "--guarantee", "0.1", "--threads", "1"]) == 2
    assert "a guarantee counts rows that are right" in capsys.readouterr().err
    assert main(["eval", str(run), "--guarantee", "0.9", "--guarantee-kind", "expectation", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["guarantee_kind"] == "expectation"
    assert main(["compare", str(run), "--rows", "6", "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 6


def test_the_table_of_exits_has_bits_per_character_a_bound_and_the_end_of_the_warm_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    print_tables([run], [1.0])
    said = capsys.readouterr().out
    bits = said.partition("| bits per character, mean over seeds | 1 |")[2]
    whole = json.loads((run / "report.json").read_text())["full depth"]["bits_per_character"]
    assert f"| full depth | {whole:.3f} |" in bits and "| end of warm-up |" in said
    best = re.search(r"\| the best exit of each row, its label known \| ([\d.]+) \|", bits)
    assert best is not None and float(best[1]) <= whole


def test_its_score_is_called_token_likelihood_everywhere(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, key = json.loads((run / "report.json").read_text()), "token_likelihood"
    assert {key} < report["policy"].keys() & report["dial"][0].keys() & report["full depth"].keys()
    tags = {tag for line in (run / "metrics.jsonl").read_text().splitlines() for tag in json.loads(line)}
    assert {f"warmup/{key}", f"rollout/{key}", f"eval/{key}"} <= tags
    policy = json.loads((run / "policy" / "policy.json").read_text())
    assert policy["score_name"] == "token likelihood" and policy["price_table"][0].keys() == {"price", "compute", key}
    capsys.readouterr()
    for words in (["eval", str(run)], ["compare", str(run), "--rows", "6"], ["prune", str(run), str(tmp_path / "pruned")], ["info", str(run)]):
        assert main([*words, "--threads", "1"]) == 0
        shown = capsys.readouterr().out
        assert "token likelihood" in shown or key in shown
        assert "accura" not in shown
    compared = json.loads((run / "compare.json").read_text())
    assert key in compared["operating"][0]["baselines"][0] and key in compared["curves"][0]["points"][0]
    for name in ("compare.md", "compare.json", "report.json", "metrics.jsonl", "policy/README.md", "policy/policy.json"):
        assert "accura" not in (run / name).read_text().lower(), name
    for name in ("README.md", "pruned.json"):
        assert "accura" not in (tmp_path / "pruned" / name).read_text().lower(), name


def test_the_policy_looks_at_the_prompt_alone(run: Path) -> None:
    model, task = load_run(run)
    ids = task.load("test").inputs["input_ids"][:6]  # type: ignore[index, call-overload]
    model.price = 0.05
    with torch.no_grad():
        model({"input_ids": ids})
        assert model.last is not None
        before = model.last.route
        changed = ids.clone()
        changed[:, PROMPT:] = changed[:, PROMPT:].flip(1)
        model({"input_ids": changed})
    assert model.last.route.equal(before)


def test_the_model_with_its_policy_generates_what_its_pruned_model_does(run: Path) -> None:
    model, tokenizer = (kind.from_pretrained(run / "model") for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer))
    inputs = tokenizer("the cat sat", return_tensors="pt", return_token_type_ids=False)
    handle = rl_skip.attach(model.eval(), run / "policy")
    assert handle.stack.prompt_tokens == PROMPT
    handle.price = 1.0
    settings = {"max_new_tokens": 30, "do_sample": False}
    generated = model.generate(**inputs, **settings)
    route = handle.last_routes[0].tolist()
    handle.detach()
    assert not all(route)
    assert generated.equal(pruned(model, "model.layers", route).generate(**inputs, **settings))
    said = generate(run, "the cat sat", tokens=30, temperature=0, price=1.0)
    assert said["text"] == tokenizer.decode(generated[0]) and said["layers"] == [i for i, ran in enumerate(route) if ran]


def test_generate_from_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], finished_run) -> None:
    capsys.readouterr()
    words = ["--tokens", "12", "--seed", "3", "--json"]
    assert main(["generate", str(run), "the dog", *words]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["generate", str(run), "the dog", *words]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["text"].startswith("the dog") and len(first["text"]) == len("the dog") + 12
    pruned_digits = tmp_path / "pruned"
    assert main(["prune", str(finished_run.folder), str(pruned_digits), "--layers", "0,1"]) == 0
    no_language = "has no language model; name a run that was trained with --task language, or what rl-skip prune made of one"
    for words, message in (
        ([str(run), ""], "the prompt is empty"),
        ([str(finished_run.folder), "a"], no_language),
        ([str(pruned_digits), "a"], no_language),
    ):
        assert main(["generate", *words]) == 2
        assert message in capsys.readouterr().err


def test_tokenizers_for_language_give_the_text_back() -> None:
    text = "First Citizen:\n  Before we proceed,\tspeak. é€\n\n"
    for tokenizer in (character_tokenizer(text), trained_tokenizer([text], 300, for_language=True)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(character_tokenizer(text)("First")["input_ids"]) == 5


def test_a_text_of_many_characters_is_cut_in_pairs_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(chr(0x4E00 + n % 500) for n in range(9000)))
    task = load_task("language", str(tmp_path / "many.txt"), TaskOptions(max_tokens=ROW, prompt_tokens=PROMPT))
    whole = task.in_words(task.load("validation").take(slice(0, 1)))[0]  # type: ignore[misc]
    assert set(whole) <= {chr(0x4E00 + n) for n in range(500)} | {"�"}


def test_it_leaves_early_without_a_warm_up_unless_it_is_asked_to_jump() -> None:
    leaving, asked = (train.read_options(["--task", "language", *flags]) for flags in ([], ["--jumps"]))
    assert leaving.policy.readouts and not leaving.policy.jumps and leaving.schedule.warmup_epochs == 0
    assert asked.policy.jumps and not asked.policy.readouts and asked.schedule.warmup_epochs > 0
    assert leaving.schedule.epochs == asked.schedule.warmup_epochs + asked.schedule.epochs
