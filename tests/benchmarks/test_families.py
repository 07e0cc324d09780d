"""Families of transformers, of each kind that the table of families has: each against itself with layers deleted."""

import pytest

pytest.importorskip("transformers")

from benchmarks.families import NAMED, REFUSED, SERVED, Outcome, examined, table
from benchmarks.small_models import FAMILIES

TUPLES = (
    "FalconForCausalLM",
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "MptForCausalLM",
    "MPNetModel",
    "RemBertModel",
    "RoFormerModel",
    "NystromformerModel",
    "FNetModel",
    "MegatronBertModel",
    "LongformerModel",
    "Data2VecVisionModel",
    "TimesformerModel",
    "WavLMModel",
    "GPTNeoForCausalLM",
)
"""Whose layers return tuples."""
OTHERS = {
    "CLIPForImageClassification": SERVED,  # the configuration of its layers is a part of its own
    "CLIPModel": NAMED,  # two towers
    "JambaForCausalLM": SERVED,  # two kinds of layers, one of whose caches has no rows that grow
    "MixtralForCausalLM": SERVED,
    "Qwen2VLForConditionalGeneration": NAMED,  # rotary angles with the rows in their second dimension
    "T5ForConditionalGeneration": NAMED,  # a decoder
    "VitDetModel": SERVED,  # channels come second
}
REFUSALS = {
    "LukeModel": "LukeLayer returns a tuple whose parts are not known",
    "OpenAIGPTLMHeadModel": "Block returns a list whose parts are not known",
    "PixtralVisionModel": "all images of a batch are one row",
    "XLNetLMHeadModel": "the rows of XLNet are the second dimension",
}


@pytest.mark.parametrize(("family", "kind"), [*((name, SERVED) for name in TUPLES), *OTHERS.items()])
def test_a_family_is_served_exactly(family: str, kind: str) -> None:
    outcome = examined(family)
    assert outcome.kind == kind, outcome.said


@pytest.mark.parametrize(("family", "sentence"), REFUSALS.items())
def test_a_family_is_refused_when_attaching(family: str, sentence: str) -> None:
    outcome = examined(family)
    assert outcome.kind == REFUSED
    assert sentence in outcome.said


def test_the_table_has_a_line_for_each_family() -> None:
    assert len(FAMILIES) >= 70
    lines = table([Outcome("BertModel", SERVED, "encoder.layer", 2e-7), Outcome("XLNetModel", REFUSED, "why")]).splitlines()
    assert lines[2:] == ["| BertModel | served | encoder.layer | 2e-07 |", "| XLNetModel | refused at attach | why |  |"]
