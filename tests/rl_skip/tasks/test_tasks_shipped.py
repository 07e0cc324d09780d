"""The data that come with the package: whole, as published, found by name, and named in a run's config.json so that it can be moved."""

from pathlib import Path

import pytest

from agents.options.config import TrainConfig
from rl_skip import UserError
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.shipped import SHIPPED, find_data
from rl_skip.tasks.tables import read_tables
from tests.rl_skip.pretrained_folders import write_table


def test_banking77_is_as_its_authors_describe_it() -> None:
    classes, parts, _ = read_tables(find_data("banking77"), TaskOptions())
    assert len(classes) == 77 and {"card_arrival", "wrong_amount_of_cash_received"} < set(classes)
    counts = {split: len(part.texts) for split, part in parts.items()}
    assert counts["test"] == 3080 and counts["train"] + counts["validation"] == 10003
    assert parts["test"].labels.bincount().tolist() == [40] * 77
    for part in parts.values():
        assert set(part.labels.tolist()) == set(range(77)) and all(text.strip() for text in part.texts)
    first = parts["test"].texts[0], classes[int(parts["test"].labels[0])]
    assert first == ("How do I locate my card?", "card_arrival")


def test_every_data_set_has_its_licence_and_says_what_was_changed() -> None:
    for folder in SHIPPED.values():
        said = (folder / "LICENSE").read_text(encoding="utf-8")
        assert "Creative Commons Attribution 4.0" in said and "creativecommons.org/licenses/by/4.0/" in said
        assert "Casanueva" in said and "Changes:" in said


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(task="text", data="banking77")
    assert find_data("banking77") == SHIPPED["banking77"] and config.to_json()["task"]["data"] == "banking77"
    Path("banking77").mkdir()
    write_table(Path("banking77", "train.tsv"), 50)
    assert read_tables(find_data("banking77"), TaskOptions())[0] == ("0", "1")
    assert config.to_json()["task"]["data"] == str(tmp_path / "banking77")


def test_the_name_of_a_model_stays_one_and_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bert").mkdir()
    for name, stored in {"minilm": "minilm", "o/n": "o/n", "bert": str(tmp_path / "bert")}.items():
        assert TrainConfig(task="text", options=TaskOptions(model=name)).to_json()["task"]["options"]["model"] == stored


def test_other_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match="there is nothing at banking78; set --data to a path that exists, or to data that come along: banking77$"):
        find_data("banking78")
