"""Which families of transformers `rl_skip.attach` serves: small random models, each against itself with layers physically deleted.

Of every family that is served it is checked that the bare model's outputs come out unchanged where every layer runs, that a route for all rows
equals the model without these layers, that rows on routes of their own equal models of one row without theirs, and that `detach` leaves no trace.
Prints a table in Markdown, and exits with 1 if a family is served and then fails, or is not exact. Takes about two minutes on one core.

    python benchmarks/families.py
    python benchmarks/families.py --only BertModel LlamaForCausalLM
"""

import argparse
import inspect
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import rl_skip  # noqa: E402
from benchmarks.small_models import DEPTH, FAMILIES, batch, build, without_layers  # noqa: E402
from rl_skip import UserError  # noqa: E402
from rl_skip.attached.library import quiet  # noqa: E402

ROUTES = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)
TOLERANCE = 1e-5
SERVED, NAMED, REFUSED, FAILED, INEXACT = "served", "served with layers=", "refused at attach", "FAILS AT ITS FIRST CALL", "NOT EXACT"


@dataclass
class Outcome:
    """What came of attaching to a family."""

    family: str
    kind: str
    said: str = ""
    """The path of the layers, or the sentence with which they were refused."""
    largest: float = 0.0
    """The largest difference from the models with layers deleted, relative to the outputs' largest value where that is above 1."""


def examined(family: str) -> Outcome:
    """Attaches to a small model of the family and compares its outputs with those of models with layers deleted."""
    path, _ = FAMILIES[family]
    model = build(family)
    try:
        rl_skip.attach(model, layers=path).detach()
    except UserError as error:
        return Outcome(family, REFUSED, str(error))
    inputs = batch(model)
    bare = answers(model, inputs)
    handle = rl_skip.attach(model, layers=path)
    try:
        exact, largest = _compared(model, handle, inputs, bare)
    except Exception as error:  # what a user would see as a traceback
        return Outcome(family, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if not exact or not largest <= TOLERANCE:
        return Outcome(family, INEXACT, handle.path, largest)
    return Outcome(family, SERVED if path == "auto" else NAMED, handle.path, largest)


def _compared(model: nn.Module, handle: rl_skip.Handle, inputs: dict[str, Tensor], bare: Tensor) -> tuple[bool, float]:
    """Whether what must be the bare model's is, and the largest difference from models with layers deleted."""
    with handle.forced(torch.ones(DEPTH, dtype=torch.bool)):
        exact = answers(model, inputs).equal(bare)
    with handle.forced(ROUTES[0]):
        shared = answers(model, inputs)
    with handle.forced(ROUTES):
        own = answers(model, inputs)
    exact &= handle.last_routes.equal(ROUTES)
    handle.detach()
    exact &= answers(model, inputs).equal(bare)
    cut = answers(without_layers(model, handle.path, ROUTES[0].tolist()), inputs, keep=False)
    each = [
        answers(without_layers(model, handle.path, route.tolist()), {name: x[b : b + 1] for name, x in inputs.items()}, keep=False)
        for b, route in enumerate(ROUTES)
    ]
    largest = max(_difference(shared, cut, inputs), _difference(own, torch.cat(each), inputs))
    exact &= _difference(own[[0, 2, 3]], bare[[0, 2, 3]], {}) > 10 * TOLERANCE  # or the layers would not matter
    return exact, largest


def answers(model: nn.Module, inputs: dict[str, Tensor], keep: bool = True) -> Tensor:
    """What the model returns: logits, or its last hidden state; of two towers, the embeddings of both.

    Args:
        model: the model.
        inputs: the rows.
        keep: whether it may fill a cache, as models do by themselves; a configuration does not always tell which kinds of layers are left.
    """
    options = {} if keep or "use_cache" not in inspect.signature(model.forward).parameters else {"use_cache": False}
    with torch.no_grad():
        outputs = model(**inputs, **options, return_dict=True)
    if "image_embeds" in outputs:
        return torch.cat([outputs.image_embeds, outputs.text_embeds], dim=1)
    answered: Tensor = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    return answered


def _difference(one: Tensor, other: Tensor, inputs: dict[str, Tensor]) -> float:
    """The largest at real tokens: what stands at padding nobody reads."""
    mask = inputs.get("attention_mask")
    if one.dim() == 3 and mask is not None and mask.shape == one.shape[:2]:
        one, other = one[mask.bool()], other[mask.bool()]
    return ((one - other).abs().max() / other.abs().max().clamp(min=1.0)).item()


def table(outcomes: list[Outcome]) -> str:
    """In Markdown."""
    lines = ["| family | | layers, or why not | largest difference |", "| --- | --- | --- | --- |"]
    for one in outcomes:
        difference = f"{one.largest:.0e}" if one.kind in (SERVED, NAMED, INEXACT) else ""
        lines.append(f"| {one.family} | {one.kind} | {one.said} | {difference} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY", default=list(FAMILIES), help="these model classes; default: all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    started, outcomes = time.perf_counter(), []
    with quiet():
        for family in options.only:
            outcomes.append(examined(family))
            print(f"\r{len(outcomes)} of {len(options.only)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(table(outcomes))
    counts = Counter(one.kind for one in outcomes)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in (SERVED, NAMED, REFUSED, FAILED, INEXACT))
    print(f"\n{len(outcomes)} families: {told}; {time.perf_counter() - started:.0f} s, torch {torch.__version__}")
    sys.exit(1 if counts[FAILED] or counts[INEXACT] else 0)


if __name__ == "__main__":
    main()
