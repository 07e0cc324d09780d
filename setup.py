"""Puts the environments, `envs` in the checkout, into wheels as `rl_skip.envs`; everything else about the package stands in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ENVS = Path("envs")
NAMED = re.compile(r"^(from )envs\b|(\")envs(?=:)", re.MULTILINE)
"""Where its modules name their own package: in imports, and before the colon of an id or entry point."""


class WithEnvironments(build_py):
    """Copies the environments beside the package's own modules, under the name that they have there."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the checkout itself
            return
        for source, target in self._environments():
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            target.write_text(NAMED.sub(lambda found: f"{found[1] or found[2]}rl_skip.envs", text), encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        more = [] if self.editable_mode else [str(target) for _, target in self._environments()]
        return [*super().get_outputs(include_bytecode), *more]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(str(source) for source, _ in self._environments())]

    def _environments(self) -> list[tuple[Path, Path]]:
        return [(source, Path(self.build_lib, "rl_skip", *source.parts)) for source in sorted(ENVS.rglob("*.py"))]


setup(cmdclass={"build_py": WithEnvironments})
