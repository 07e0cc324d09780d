"""Which class of a trained classifier is which of the data: by name, or as the user says, never by guess."""

from pathlib import Path

import pytest
import torch

from rl_skip import UserError, load_task
from rl_skip.attached.classes import order_of_model
from rl_skip.tasks.options import TaskOptions
from tests.rl_skip.pretrained_folders import save_bert, write_table

transformers = pytest.importorskip("transformers")


def config(*names: str, head: bool = True) -> object:
    kind = "BertForSequenceClassification" if head else "BertModel"
    return transformers.BertConfig(architectures=[kind], id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


@pytest.mark.parametrize(
    ("named", "classes", "order"),
    [
        (("positive", "negative"), ("negative", "positive"), [1, 0]),
        (("NEUTRAL", "Positive", "negative"), ("negative", "neutral", "positive"), [2, 0, 1]),
        (("yes", "Yes"), ("Yes", "yes"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("LABEL_1", "LABEL_0"), [1, 0]),
    ],
)
def test_classes_of_the_same_names_are_found(named: tuple[str, ...], classes: tuple[str, ...], order: list[int]) -> None:
    found, in_order = order_of_model(classes, config(*named), "somewhere")
    assert found.tolist() == order and [classes[order.index(i)] for i in range(len(order))] == list(in_order)


@pytest.mark.parametrize(
    ("named", "classes"),
    [(("LABEL_0", "LABEL_1"), ("0", "1")), (("entailment", "neutral", "contradiction"), ("A", "B", "C")), (("yes", "Yes"), ("yes", "no"))],
)
def test_others_are_refused_unless_their_order_is_given(named: tuple[str, ...], classes: tuple[str, ...]) -> None:
    theirs, ours = ", ".join(named), ", ".join(classes)
    with pytest.raises(UserError, match=f"calls its classes {theirs}, the data theirs {ours}, .*set --label-order") as refused:
        order_of_model(classes, config(*named), "somewhere")
    assert "\n" not in str(refused.value)
    given = ",".join(reversed(classes))
    order, in_order = order_of_model(classes, config(*named), "somewhere", given)
    assert order.tolist() == list(reversed(range(len(classes)))) and in_order == tuple(reversed(classes))


def test_what_cannot_be_an_order_is_refused() -> None:
    for given in ("a", "a,a", "a,b,c", "a,x"):
        with pytest.raises(UserError, match="--label-order names .*, the classes of the data are a, b; name each of these once"):
            order_of_model(("a", "b"), config("x", "y"), "somewhere", given)
    with pytest.raises(UserError, match="has 3 classes, the data have 2"):
        order_of_model(("a", "b"), config("x", "y", "z"), "somewhere", "a,b")
    with pytest.raises(UserError, match="has no classifier yet, so its classes have no order"):
        order_of_model(("a", "b"), config("x", "y", head=False), "somewhere", "a,b")
    with pytest.raises(UserError, match="set --model to a classifier"):
        load_task("digits", None, TaskOptions(label_order="0,1"))


def test_a_model_without_a_classifier_takes_the_data_s_order() -> None:
    assert order_of_model(("a", "b", "c"), config("x", "y", head=False), "somewhere")[0].tolist() == [0, 1, 2]


def test_many_names_are_not_all_listed() -> None:
    names = [f"intent_{i}" for i in range(77)]
    with pytest.raises(UserError, match="intent_5 and 71 more, the data theirs 0, 1, 2, 3, 4, 5 and 71 more") as refused:
        order_of_model([str(i) for i in range(77)], config(*names), "somewhere")
    assert "intent_6" not in str(refused.value)


def test_what_is_saved_has_the_data_s_names_in_the_model_s_order(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data.tsv", 60, names=("bad", "good"))
    folder = str(save_bert(tmp_path / "model", head=True, names=("LABEL_0", "LABEL_1")))
    with pytest.raises(UserError, match="set --label-order"):
        load_task("text", str(data), TaskOptions(model=folder))
    task = load_task("text", str(data), TaskOptions(model=folder, label_order="good, bad"))
    plain = load_task("text", str(data))
    assert task.classes == ("good", "bad") and torch.equal(task.load("train").labels, 1 - plain.load("train").labels)
    stack = task.build(None)  # type: ignore[arg-type]
    stack.write_model(tmp_path / "saved")
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert saved.id2label == {0: "good", 1: "bad"} and saved.label2id == {"good": 0, "bad": 1}
    again = load_task("text", str(data), TaskOptions(model=str(tmp_path / "saved")))
    assert again.classes == task.classes and again.load("test").labels.equal(task.load("test").labels)
