"""What a comparison knows of a baseline: one record, which stands beside the code that trains or measures it."""

import re
from dataclasses import dataclass, fields
from typing import Any

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.measure.compare.style import GREY

__all__ = ["BaselineRecord"]


@dataclass(frozen=True)
class BaselineRecord:
    """What the policy is compared with, or the policy itself, as table, figures and verdict call and draw it.

    Curves of records with the same name are one curve: those of a baseline that is trained once for each budget.
    """

    name: str
    """Tells it from all others, in files and on the command line, such as "static"."""
    title: str
    """What a reader sees."""
    about: str = ""
    """What it is, for the report: what follows "title: "."""
    advice: str = ""
    """What to do where it is better than the policy; the verdict says it. Empty: it takes no part in the verdict."""
    trained: bool = False
    """Whether it has a network, or a policy, with a training of its own."""
    per_budget: bool = False
    """Whether it is trained for one mean compute, once for each budget. Otherwise one training serves all."""
    control: bool = False
    """Whether it is a control or a bound that nobody would run: it has a point for each of the policy's prices, and stands beside that one."""
    colour: str = GREY
    """As #rrggbb."""
    marker: str = "h"
    """Of matplotlib."""
    line: str | tuple[float, ...] = "-"
    """A line style of matplotlib, empty for none; or how long dashes and gaps are, in turns."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise UserError(f"the colour of the baseline {self.name} must be #rrggbb, got {self.colour!r}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(f"a baseline is called by letters, digits, dots and dashes, got {self.name!r}; its title may be longer")

    def to_json(self) -> dict[str, Any]:
        """What `read` takes."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

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
