"""The map of the house: who imports whom, what each folder says of itself, and what the wheel holds."""

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
FLOORS = (
    "rl_skip.core",
    "rl_skip.learning",
    "rl_skip.nets",
    "rl_skip.export",
    "rl_skip.attached",
    "rl_skip.tasks",
    "rl_skip.measure",
    "rl_skip.cli",
    "envs",
    "agents.agent",
    "agents.options",
    "agents.run",
    "agents.policy",
    "agents.baselines",
    "train",
)
"""From the ground up: a module imports its own floor and those below."""
NOT_DEPLOYED = {"gymnasium", "stable_baselines3", "sb3_contrib", "tensorboard", "tyro", "rich"}
"""What the package rl_skip, which a server installs, never imports."""
SHIPPED = {"rl_skip.export.graphs.run_pack"}
"""What is copied into an export and runs there without rl_skip, by packages that rl_skip itself does not need."""
ONNX = {"onnx", "onnxruntime", "onnxscript"}
OPTIONAL = NOT_DEPLOYED | ONNX | {"matplotlib", "numpy", "scipy", "sklearn", "PIL", "transformers", "tokenizers", "peft"}
IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys
for name in {sorted(OPTIONAL)}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import rl_skip
names = [found.name for found in pkgutil.walk_packages(rl_skip.__path__, "rl_skip.") if not found.name.endswith("__main__")]
names = [name for name in names if name not in {sorted(SHIPPED)}]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
FROM_THE_WHEEL = """
import sys
sys.modules["envs"] = None  # that of the checkout
sys.path.insert(0, sys.argv[1])
import gymnasium as gym
env = gym.make("rl_skip.envs:rl_skip/Hops-v0", split="validation")
env.reset(seed=0)
env.step(0)
vector = gym.make_vec("rl_skip.envs:rl_skip/LayerSkip-v0", num_envs=2, task="digits", layers=3, width=8)
vector.reset(seed=0)
import rl_skip.envs
assert rl_skip.envs.__file__.startswith(sys.argv[1]), rl_skip.envs.__file__
assert env.unwrapped.__module__ == "rl_skip.envs.single" and callable(rl_skip.envs.make_sb3_env)
"""


def modules(top: Path) -> dict[str, Path]:
    """Every module of the packages, by its dotted name; a folder's `__init__` has the folder's."""
    files = [*(file for package in ("rl_skip", "envs", "agents") for file in top.joinpath(package).rglob("*.py")), top / "train.py"]
    return {".".join(file.relative_to(top).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def named_in(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The names of all that a file imports, wherever in it; and of modules that it names as text, to be imported later."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in known else node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            place = node.value.partition(":")[0]  # "package.module:name" of a registry, or the argument of import_module
            if "." in place and place in known:
                yield place


def floor_of(module: str) -> int | None:
    """The number of a module's floor; None for the packages themselves, whose `__init__` only gathers names."""
    found = max((floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")), key=len, default=None)
    return None if found is None else FLOORS.index(found)


def arrows_upwards(top: Path) -> list[str]:
    """Every import that leads from a floor to a higher one, or from inside a package to the package itself."""
    known, found = modules(top), []
    for module, file in known.items():
        here = floor_of(module)
        for target in dict.fromkeys(named_in(file, known)):
            there = floor_of(target)
            if here is not None and target in known and (there is None or there > here) and target != module:
                found.append(f"{module} -> {target}")
    return found


def circles(top: Path) -> list[str]:
    """Modules that lead back to themselves."""
    known = modules(top)
    arrows = {module: {target for target in named_in(file, known) if target in known and target != module} for module, file in known.items()}
    found: list[str] = []
    done: set[str] = set()

    def descend(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for target in sorted(arrows[module]):
                descend(target, [*way, module])
            done.add(module)

    for module in sorted(known):
        if floor_of(module) is not None:  # the packages' own `__init__` name everything
            descend(module, [])
    return found


def copied(tmp_path: Path) -> Path:
    for package in ("rl_skip", "envs", "agents"):
        shutil.copytree(TOP / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "train.py", tmp_path)
    return tmp_path


def test_imports_run_downwards() -> None:
    assert len(modules(TOP)) > 90
    assert arrows_upwards(TOP) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(TOP) == []


@pytest.mark.parametrize(
    ("file", "line", "arrow"),
    [
        ("rl_skip/core/routing.py", "from rl_skip.nets.gated import GatedStack", "rl_skip.core.routing -> rl_skip.nets.gated"),
        ("rl_skip/measure/evaluation.py", "def late():\n    from agents.run import learner", "rl_skip.measure.evaluation -> agents.run.learner"),
        ("rl_skip/cli/main.py", 'print(__import__("agents.baselines.training"))', "rl_skip.cli.main -> agents.baselines.training"),
        ("rl_skip/core/plugins.py", 'LATER = "rl_skip.tasks.digits:digits"', "rl_skip.core.plugins -> rl_skip.tasks.digits"),
        ("envs/core.py", "import agents.run.session", "envs.core -> agents.run.session"),
        ("agents/policy/reinforce.py", "from agents.baselines.exits import Exits", "agents.policy.reinforce -> agents.baselines.exits"),
        ("rl_skip/export/card.py", "import rl_skip", "rl_skip.export.card -> rl_skip"),
    ],
)
def test_an_arrow_that_is_turned_is_found(tmp_path: Path, file: str, line: str, arrow: str) -> None:
    top = copied(tmp_path)
    top.joinpath(file).write_text(top.joinpath(file).read_text() + f"\n{line}\n")
    assert arrows_upwards(top) == [arrow]


def test_a_circle_is_found(tmp_path: Path) -> None:
    top = copied(tmp_path)
    file = top / "rl_skip/core/policy.py"
    file.write_text(file.read_text() + "\nfrom rl_skip.core import routing\n")
    assert "rl_skip.core.policy -> rl_skip.core.routing -> rl_skip.core.policy" in circles(top)


def test_what_is_deployed_never_imports_what_trains() -> None:
    known = modules(TOP)
    deployed = {module: file for module, file in known.items() if module.split(".")[0] == "rl_skip"}
    found = {module: bad for module, file in deployed.items() if (bad := {name.split(".")[0] for name in named_in(file, known)} & NOT_DEPLOYED)}
    assert found == {}


def test_each_folder_says_what_belongs_there() -> None:
    for module, file in modules(TOP).items():
        if file.name == "__init__.py":
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            assert 1 <= len(said.splitlines()) <= 5, f"{module} must say in a few lines what belongs there, and says {said!r}"


def test_every_module_of_rl_skip_imports_with_torch_and_safetensors_alone() -> None:
    expected = [module for module in modules(TOP) if module.startswith("rl_skip.") and not module.endswith("__main__") and module not in SHIPPED]
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(expected)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, made of the source archive that is made of a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("rl_skip", "envs", "agents", "tests"):
        shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_rl_skip_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {name.partition("/licenses/")[2] for name in archive.namelist()} - {""}
        described = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    data = {f"rl_skip/tasks/data/banking77/{name}" for name in ("LICENSE", "test.csv.gz", "train.csv.gz")}
    run = TOP / "rl_skip" / "tasks" / "data" / "hops-v0"
    data |= {file.relative_to(TOP).as_posix() for file in run.rglob("*") if file.is_file()}
    assert sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) < 500_000 and f"{run.relative_to(TOP)}/policy/policy.json" in data
    expected = {file.relative_to(TOP).as_posix() for file in TOP.joinpath("rl_skip").rglob("*.py")} | {"rl_skip/py.typed"} | data
    expected |= {f"rl_skip/{file.relative_to(TOP).as_posix()}" for file in TOP.joinpath("envs").rglob("*.py")}
    assert names == expected
    assert licences == {"LICENSE", "rl_skip/tasks/data/banking77/LICENSE"} and "License-Expression: MIT AND CC-BY-4.0" in described


def test_the_wheel_has_the_environments_as_rl_skip_envs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run([sys.executable, "-c", FROM_THE_WHEEL, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
