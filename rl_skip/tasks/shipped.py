"""Data sets that come with the package, by name; each a folder with its licence in it."""

from pathlib import Path

from rl_skip.core.errors import UserError

__all__ = ["SHIPPED", "find_data", "is_shipped"]

SHIPPED = {"banking77": Path(__file__).parent / "data" / "banking77"}


def is_shipped(data: str) -> bool:
    """Whether `data` names a data set of the package. A file or folder of that name in the working directory wins."""
    return data in SHIPPED and not Path(data).exists()


def find_data(data: str) -> Path:
    """Where the data are that `--data` names: at a path, or in the package.

    Raises:
        UserError: if there is nothing.
    """
    if is_shipped(data):
        return SHIPPED[data]
    if not Path(data).exists():
        raise UserError(f"there is nothing at {data}; set --data to a path that exists, or to data that come along: {', '.join(SHIPPED)}")
    return Path(data)
