"""The versions that pyproject.toml allows are those that are tested: each lowest one is pinned in constraints-lowest.txt."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def bounds() -> dict[str, Version]:
    """The lowest version of each package that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    wanted = [Requirement(line) for line in lines]
    found: dict[str, Version] = {}
    for requirement in wanted:
        for specifier in requirement.specifier:
            if specifier.operator == ">=":
                name, version = canonicalize_name(requirement.name), Version(specifier.version)
                assert found.setdefault(name, version) == version, f"{name} has two lowest versions"
    return found


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    lowest = pins("constraints-lowest.txt")
    assert {name: lowest.get(name) for name in bounds()} == bounds()


def test_the_newest_versions_are_allowed() -> None:
    newest = pins("constraints.txt")
    assert len(newest) > 30
    for name, version in bounds().items():
        assert newest[name] >= version, name
