"""What the packages promise each other: who imports whom, and what the wheel holds."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
ABOVE = {
    "rl_skip": {"envs", "agents", "train", "gymnasium", "stable_baselines3", "sb3_contrib", "tensorboard", "tyro", "rich"},
    "envs": {"agents", "train"},
    "agents": {"train"},
}
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for name in ("gymnasium", "stable_baselines3", "sb3_contrib", "tensorboard", "tyro", "rich", "matplotlib", "numpy", "scipy", "sklearn", "PIL",
             "transformers", "tokenizers", "peft"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import rl_skip
names = [found.name for found in pkgutil.walk_packages(rl_skip.__path__, "rl_skip.") if not found.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def imported(file: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ABOVE)
def test_imports_run_one_way(package: str) -> None:
    files = list(TOP.joinpath(package).rglob("*.py"))
    assert files
    found = {file.name: forbidden for file in files if (forbidden := imported(file) & ABOVE[package])}
    assert found == {}


def test_every_module_of_rl_skip_imports_with_torch_and_safetensors_alone() -> None:
    files = [file for file in TOP.joinpath("rl_skip").rglob("*.py") if file.name not in ("__init__.py", "__main__.py")]
    packages = [folder for folder in TOP.joinpath("rl_skip").rglob("__init__.py") if folder.parent.name != "rl_skip"]
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(files) + len(packages)


def test_the_wheel_holds_rl_skip_alone(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    for name in ("rl_skip", "envs", "agents", "tests"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {file.relative_to(TOP).as_posix() for file in TOP.joinpath("rl_skip").rglob("*.py")} | {"rl_skip/py.typed"}
    assert names == expected
