"""Tuning an attached policy to a batch size: what is chosen holds for later calls and travels with the policy."""

from pathlib import Path

import pytest
import torch

import rl_skip
from rl_skip.core.tuning import Tuned
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import batch, build

pytest.importorskip("transformers")


def test_what_is_found_holds_for_later_calls_and_is_saved(tmp_path: Path) -> None:
    model = build("bert")
    inputs = batch(model)
    handle = rl_skip.attach(model, make_policy(7))
    handle.price = 0.3
    model(**inputs)
    routes = handle.last_routes
    assert not routes.all()
    found = handle.tune(inputs, repeats=2)
    assert handle.tuned == (found,) and found.batch_size == len(routes)
    handle.tuned = (Tuned(1, "rows", (1.0,) * 4, 0.5), Tuned(2, "everything", (3.0, 3.0, 3.0, 2.0), 0.25))
    model(**inputs)
    assert handle.last_routes.all()
    model(**{name: value[:1] for name, value in inputs.items()})
    assert handle.last_routes.equal(routes[:1])
    handle.save_pretrained(tmp_path / "policy")
    handle.detach()
    again = rl_skip.attach(model, tmp_path / "policy")
    assert again.tuned == handle.tuned
    card = (tmp_path / "policy" / "README.md").read_text()
    assert again.tuned[1].in_words() in card and "In batches of 2 rows the policy is not asked, and every layer runs" in card
    again.tuned = ()
    model(**inputs)
    assert again.last_routes.equal(routes)


def test_there_must_be_a_policy() -> None:
    handle = rl_skip.attach(build("bert"), None)
    with pytest.raises(rl_skip.UserError, match="no policy to tune"):
        handle.tune({"input_ids": torch.zeros(1, 4, dtype=torch.long)})
