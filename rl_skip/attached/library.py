"""transformers and peft, imported on first use."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rl_skip.core.errors import UserError

__all__ = ["require", "quiet"]


def require(name: str = "transformers") -> Any:
    """The package `name`, imported.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"this needs {name}; pip install 'rl-skip[huggingface]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, transformers shows no progress and logs nothing but errors."""
    logging = require("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
