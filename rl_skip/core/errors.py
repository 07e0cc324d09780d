"""The exception for a user's mistakes."""

import math
import numbers

__all__ = ["UserError", "as_number", "positive"]


class UserError(Exception):
    """A user's mistake, in one line; the command lines print it and exit with its code."""

    exit_code = 2


def as_number(value: object) -> float:
    """The number itself, of a tensor or array the one in it; nan, which no comparison accepts, of what is none."""
    try:
        return float(value.item() if hasattr(value, "item") else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def positive(name: str, value: float, flag: str, zero: bool = False) -> None:
    """Raises `UserError` unless a number is finite and above 0, or `zero`."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(f"{name} must be a finite number {'of at least' if zero else 'above'} 0, got {value}; set {flag}")
