"""What a word of the command line says: a price, a budget, a number, layers. Each raises `ArgumentTypeError` with what was expected."""

import math
import reprlib
from argparse import ArgumentTypeError

from rl_skip.core.bounded import LEAST_BUDGET

__all__ = ["budget", "budget_of_table", "count", "layers", "plain", "price", "seed", "tolerance"]

MOST = 10**9
"""Of a whole number on the command line."""


def plain(text: str) -> str:
    """The text of a number, as it was given.

    Raises:
        ValueError: if it has digits of another script or underscores, which Python would read.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(f"a number is written in the digits 0 to 9, got {reprlib.repr(text)}")
    return text


def _number(text: str) -> float:
    try:
        return float(plain(text))
    except ValueError:
        return math.nan


def price(text: str) -> float:
    """A price λ, in score per unit of relative compute."""
    given = _number(text)
    if not (math.isfinite(given) and given >= 0):
        raise ArgumentTypeError(f"a price is a finite number of at least 0, got {text!r}")
    return given


def budget(text: str) -> float:
    """A mean compute, in (0, 1]."""
    given = _number(text)
    if not LEAST_BUDGET <= given <= 1:
        raise ArgumentTypeError(f"a budget is a mean compute in (0, 1], {LEAST_BUDGET} at the least, got {text!r}")
    return given


def budget_of_table(text: str) -> float:
    """A budget that is looked up, whose table says how far it reaches: beyond 1 where compute is measured time."""
    given = _number(text)
    return given if LEAST_BUDGET <= given < math.inf else budget(text)


def tolerance(text: str) -> float:
    """The loss of score that a guarantee allows."""
    given = _number(text)
    if not 0 < given < 1:
        raise ArgumentTypeError(f"a guarantee is a loss of score in (0, 1), 0.01 being one point, got {text!r}")
    return given


def seed(text: str) -> int:
    """A whole number of any sign."""
    try:
        return int(plain(text))
    except ValueError:
        raise ArgumentTypeError(f"a seed is a whole number, got {reprlib.repr(text)}") from None


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MOST)) and 1 <= int(text) <= MOST):
        raise ArgumentTypeError(f"expected a whole number from 1 to {MOST:,}, got {reprlib.repr(text)}")
    return int(text)


def layers(text: str) -> tuple[int, ...]:
    """Layers by their numbers, with commas between them."""
    given = text.split(",")
    if not all(layer.strip().isascii() and layer.strip().isdecimal() and len(layer) < len(str(MOST)) for layer in given):
        raise ArgumentTypeError(f"layers are whole numbers with commas between them, such as 0,3,7, got {text!r}")
    return tuple(int(layer) for layer in given)
