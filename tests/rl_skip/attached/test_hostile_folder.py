"""Folders of models made to do harm: what waits, fills the memory or leads elsewhere is one line before transformers reads it."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from rl_skip.attached.pretrained import load_model, read_config, read_processor, read_tokenizer  # noqa: E402
from rl_skip.core.errors import UserError  # noqa: E402
from tests.rl_skip.pretrained_folders import save_bert  # noqa: E402

LIMIT = 2**19
"""KiB that a refusal may take."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "model", head=True)


def refused(call: Any, folder: Path) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as told:
        call(str(folder))
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT
    return str(told.value)


@pytest.mark.parametrize("read", [read_config, read_tokenizer, read_processor, load_model])
@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json", "other.safetensors"])
def test_a_pipe_and_a_device_are_refused_without_waiting(folder: Path, read: Any, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is a pipe and no file" in refused(read, folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert f"{name} is a device and no file" in refused(read, folder)


def test_an_index_that_leads_out_of_the_folder(folder: Path) -> None:
    for place in ("../other.safetensors", "/etc/hostname", 3, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": place}}))
        assert "names files that are not beside it" in refused(load_model, folder)
    (folder / "model.safetensors.index.json").unlink()
    assert load_model(str(folder)).depth


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000, and a model has at most 1,000"),
        ("vocab_size", 10**10, "bytes of weights, and the files there allow"),
        ("intermediate_size", 10**9, "bytes of weights, and the files there allow"),
    ],
)
def test_a_configuration_of_more_than_is_there(folder: Path, name: str, value: int, said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    assert said in refused(load_model, folder)


def test_what_is_counted_draws_nothing(folder: Path) -> None:
    states = []
    for classes in (None, ("0", "1")):
        torch.manual_seed(0)
        load_model(str(folder), classes)
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)
