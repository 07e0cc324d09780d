"""README and docs/: the README is short, every link leads somewhere, and the site has every page."""

import re
from importlib import import_module

import pytest

from tests.pages import FENCED, PAGES, TOP, anchors, blocks, links

DOCS = TOP / "docs"
NAVIGATION = re.findall(r"^ +- .+: (\S+\.md)$", TOP.joinpath("mkdocs.yml").read_text(encoding="utf-8"), re.M)
LANGUAGES = {"python", "bash", "text"}


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(TOP.joinpath("README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page) -> None:
    """Relative links and their anchors; what lies elsewhere is not asked for."""
    dead = []
    for link in links(page):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(TOP) or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_a_dead_link_is_found(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`\n\n[a](other.md#one) ![b](picture.png) `[c](code.md)`\n\n```python\nx[0](y)\n```\n\n# One two\n")
    assert links(page) == ["other.md#one", "picture.png"]
    assert anchors(page) == {"one-two", "one-two_1"}


def test_every_page_is_in_the_navigation_once() -> None:
    assert len(NAVIGATION) == len(set(NAVIGATION))
    assert {page.name for page in DOCS.glob("*.md")} == {name for name in NAVIGATION if (DOCS / name).exists()}
    assert all((TOP / name).exists() for name in NAVIGATION if not (DOCS / name).exists())


def test_the_readme_leads_to_every_page() -> None:
    reached = {link.partition("#")[0] for link in links(TOP / "README.md")}
    expected = {f"docs/{page.name}" for page in DOCS.glob("*.md") if page.name != "index.md" and not page.name.startswith("api")}  # the site's own
    assert expected - reached == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page) -> None:
    """So that none is passed over by the tests that run them; commands do not hide in indented blocks."""
    assert [str(block) for block in blocks(page) if block.language not in LANGUAGES] == []
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    assert re.findall(r"^    (?:python|pip|rl-skip|make|import|from) .*$", prose, re.M) == []


def test_every_picture_says_what_it_shows() -> None:
    assert [page.name for page in PAGES if re.search(r"!\[\s*\]\(", page.read_text(encoding="utf-8"))] == []


def test_the_reference_names_what_exists() -> None:
    """All public names of rl_skip, and others that are."""
    texts = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api*.md"))
    listed = re.findall(r"^::: (\S+)\.(\w+)$", texts, re.M)
    assert len(listed) == len(set(listed))
    assert all(hasattr(import_module(module), name) for module, name in listed)
    missing = set(import_module("rl_skip").__all__) - {name for module, name in listed if module == "rl_skip"}
    assert missing == {"FEATURES", "REWARDS", "Split", "__version__"}  # registries, a literal and a string
