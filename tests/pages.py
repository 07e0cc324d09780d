"""The README and the pages in docs/ as the tests read them: their code blocks, links and headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown.extensions.toc import slugify

TOP = Path(__file__).resolve().parents[1]
PAGES = sorted([*TOP.joinpath("docs").glob("*.md"), *TOP.glob("*.md")])
NEEDS = re.compile(r"<!-- needs: (.+) -->\n\Z")
"""What stands on the line before a block that the tests cannot run: it says which data it needs."""
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    code: str
    line: int
    needs: str | None
    """The data that the block's marker names."""

    @property
    def commands(self) -> list[list[str]]:
        """Of a block in bash: the words of each command, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [shlex.split(part, comments=True) for line in lines for part in line.split(" && ") if shlex.split(part, comments=True)]

    def __str__(self) -> str:
        return f"{self.page.relative_to(TOP)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks, in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCED.finditer(text):
        needs = NEEDS.search(text[: match.start()])
        found.append(Block(page, match[1], match[2], text.count("\n", 0, match.start()) + 1, needs[1] if needs else None))
    return found


def links(page: Path) -> list[str]:
    """The targets of all links and pictures outside of code."""
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    return LINK.findall(prose)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may name; a heading's second of its kind has a number."""
    prose, seen = FENCED.sub("", page.read_text(encoding="utf-8")), set[str]()
    for heading in re.findall(r"^#+ (.+)$", prose, re.M):
        name = anchor = slugify(re.sub(r"[*`]|\]\([^)]*\)|\[", "", heading), "-")
        count = 0
        while anchor in seen:
            count += 1
            anchor = f"{name}_{count}"
        seen.add(anchor)
    return seen
