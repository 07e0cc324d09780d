"""Language models whose configuration says by a layer's number what the layer is, or not that they are causal: pruned, and gone on with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rl_skip
import train
from rl_skip.cli.main import main
from rl_skip.measure.runs import load_run
from rl_skip.tasks.tokens import character_tokenizer

transformers = pytest.importorskip("transformers")
VERSE = "the cat sat on the mat, and the dog ran to the cat.\n" * 40
PROMPT = "the cat sat"
NONE: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": None, **NONE}


def _model(family: str, tokens: int) -> Any:
    """A small one whose layers matter."""
    if family == "inverse":
        config = transformers.GPT2Config(
            vocab_size=tokens, n_embd=16, n_layer=4, n_head=2, n_positions=48, scale_attn_by_inverse_layer_idx=True, **NONE
        )
    elif family == "some without positions":
        config = transformers.SmolLM3Config(vocab_size=tokens, num_key_value_heads=2, max_position_embeddings=64, **SIZES)
    else:
        config = transformers.BloomConfig(vocab_size=tokens, hidden_size=16, n_layer=4, n_head=2, **NONE)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
    return model


@pytest.fixture(scope="module", params=["inverse", "some without positions", "not said to be causal"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    (folder / "verse.txt").write_text(VERSE)
    torch.manual_seed(0)
    tokenizer = character_tokenizer(VERSE)
    _model(request.param, len(tokenizer)).save_pretrained(folder / "given")
    tokenizer.save_pretrained(folder / "given")
    size = ["--max-tokens", "24", "--prompt-tokens", "8", "--batch-size", "16", "--train-rows", "48", "--epochs", "1", "--no-begin-again"]
    words = ["--task", "language", "--data", str(folder / "verse.txt"), "--model", str(folder / "given"), "--out", str(folder / "run"), *size]
    assert train.main([*words, "--learning-rate", "3e-3", "--threads", "1"]) == 0
    return folder / "run"


def _forced(run: Path, layers: list[int]) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()
    handle = rl_skip.attach(model, run / "policy")
    return model, handle.forced(torch.tensor([i in layers for i in range(4)]))


@pytest.mark.parametrize("layers", [[0, 1], [0, 2], [0, 1, 3]])
def test_what_is_pruned_is_read_again_as_it_was_or_refused(run: Path, layers: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned, text = tmp_path / "pruned", ",".join(map(str, layers))
    capsys.readouterr()
    ended = main(["prune", str(run), str(pruned), "--layers", text, "--threads", "1"])
    said = capsys.readouterr()
    config = transformers.AutoConfig.from_pretrained(run / "model")
    if config.model_type == "gpt2" and layers != [0, 1]:
        assert ended == 2 and f"the GPT2LMHeadModel with layers {text} alone answers otherwise when it is read again" in said.err
        assert not list(tmp_path.iterdir())
        return
    assert ended == 0
    ids = load_run(run)[1].load("test").inputs["input_ids"][:5]  # type: ignore[index, call-overload]
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    inputs = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    model, forced = _forced(run, layers)
    with torch.no_grad(), forced:
        expected, generated = model(input_ids=ids).logits, model.generate(**inputs, max_new_tokens=20, do_sample=False)
        torch.testing.assert_close(rl_skip.load_pruned(pruned)({"input_ids": ids}), expected, atol=1e-5, rtol=1e-4)
    if config.model_type == "bloom" and layers[-1] < 3:  # its readouts pool
        assert main(["generate", str(pruned), PROMPT]) == 2
        assert "answers by a mean over all tokens" in capsys.readouterr().err
        return
    for more in ([], ["--no-cache"]):
        assert main(["generate", str(pruned), PROMPT, "--tokens", "20", "--temperature", "0", "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["text"] == tokenizer.decode(generated[0])


def test_what_does_not_fit_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned = tmp_path / "pruned"
    assert main(["prune", str(run), str(pruned), "--layers", "0,1", "--threads", "1"]) == 0
    mistakes = [
        ([str(run), PROMPT, "--tokens", "0"], "--tokens"),
        ([str(tmp_path), PROMPT], "is neither a run nor a pruned network"),
        ([str(pruned), PROMPT, "--budget", "0.5"], "which has one route"),
    ]
    config = transformers.AutoConfig.from_pretrained(run / "model")
    if config.model_type == "gpt2":
        message = f"room for 48 tokens, the prompt has {len(PROMPT)}, and 200 are to follow; set --tokens, or tokens=, to {49 - len(PROMPT)} at most"
        mistakes += [([str(folder), PROMPT], message) for folder in (run, pruned)]
        for folder in (run, pruned):
            assert main(["generate", str(folder), PROMPT, "--tokens", str(49 - len(PROMPT))]) == 0
    for words, message in mistakes:
        capsys.readouterr()
        assert main(["generate", *words]) == 2
        assert message in capsys.readouterr().err
    for file in (pruned / "model").iterdir():
        file.unlink()
    (pruned / "model").rmdir()
    assert main(["generate", str(pruned), PROMPT]) == 2
    assert "has no folder model, in which its model was; prune the run again" in capsys.readouterr().err
