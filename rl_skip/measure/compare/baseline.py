"""The record of a baseline: all that a comparison knows of it, defined beside the code that trains or measures it."""

import re
from dataclasses import dataclass, fields
from typing import Any

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.measure.compare.style import GREY

__all__ = ["BaselineRecord"]


@dataclass(frozen=True)
class BaselineRecord:
    """A baseline, or the policy itself, as table, figures and verdict name and draw it.

    Curves of records with the same name are one curve: those of a baseline that is trained once for each budget.
    """

    name: str
    """Its name in files and on the command line, unlike any other's, such as "static"."""
    title: str
    """What a reader sees."""
    about: str = ""
    """What it is, for the report: what follows "title: "."""
    advice: str = ""
    """What the verdict advises where it is better than the policy. Empty: it takes no part in the verdict."""
    trained: bool = False
    """Whether it has a network, or a policy, with a training of its own."""
    per_budget: bool = False
    """Whether it is trained for one mean compute, once for each budget. Otherwise one training serves all."""
    control: bool = False
    """Whether it is a control or a bound, not for use: it has a point for each of the policy's prices, and is compared at the same price."""
    colour: str = GREY
    """As #rrggbb."""
    marker: str = "h"
    """Of matplotlib."""
    line: str | tuple[float, ...] = "-"
    """A line style of matplotlib, empty for none; or how long dashes and gaps are, in turns."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise UserError(f"the colour of the baseline {self.name} must be #rrggbb, got {self.colour!r}")
        if not re.fullmatch(r"[\w. -]+", self.name):  # it is the name of a folder too
            raise UserError(f"a baseline is called by letters, digits, dots, dashes and spaces, got {self.name!r}; its title may be longer")

    def to_json(self) -> dict[str, Any]:
        """What `read` takes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def read(cls, described: Fields) -> "BaselineRecord":
        """Reads what `to_json` gave.

        Raises:
            UserError: if a field is missing or wrong, by name.
        """
        texts = {name: described.text(name) for name in ("name", "title", "about", "advice", "colour", "marker")}
        flags = {name: described.flag(name) for name in ("trained", "per_budget", "control")}
        line = described.get("line")
        read: dict[str, Any] = {**texts, **flags, "line": described.numbers("line", len(line)) if isinstance(line, list) else described.text("line")}
        return cls(**read)
