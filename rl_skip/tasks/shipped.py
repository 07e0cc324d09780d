"""What comes with the package, by name: data sets, each a folder with its licence in it, and finished runs."""

from pathlib import Path

from rl_skip.core.errors import UserError

__all__ = ["SHIPPED", "SHIPPED_RUNS", "find_data", "find_run", "is_shipped"]

FOLDER = Path(__file__).parent / "data"
SHIPPED = {"banking77": FOLDER / "banking77"}
SHIPPED_RUNS = {"hops-v0": FOLDER / "hops-v0"}
"""What `benchmarks/hops.py --ship` writes: a frozen network on the task hops, and a policy for it."""


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


def find_run(run: Path | str) -> Path:
    """The folder of a run: at a path, or of that name in the package. A folder in the working directory wins."""
    return Path(run) if Path(run).exists() else SHIPPED_RUNS.get(str(run), Path(run))
