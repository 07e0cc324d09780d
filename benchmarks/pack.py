"""A routed network outside of PyTorch: the same routes and answers for every test row, and how fast beside the whole network in onnxruntime.

Writes the pack of a finished run, and the whole network without a policy, by the same exporter; runs every test row
through PyTorch; then measures with onnxruntime and NumPy alone, in an environment that it makes in OUT (`pack_clock.py`). Tokens are made once.

    python benchmarks/pack.py RUN OUT [--budgets 0.5 0.33] [--batches 1 32] [--threads 1 2]
"""

import argparse
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import row_count, take_rows, trimmed
from rl_skip.export.graphs.folder import About, numpy_inputs
from rl_skip.export.graphs.layer_graphs import Graphs
from rl_skip.export.graphs.pack import write_pack
from rl_skip.export.graphs.routes import write_routes
from rl_skip.export.policy_folder import SkipModel, read_description
from rl_skip.measure.runs import load_run, read_run

CHECKED = 32
"""Rows of a batch in which all test rows are compared with PyTorch's."""


def export(options: argparse.Namespace, model: SkipModel, inputs: dict[str, torch.Tensor]) -> None:
    """Writes both into OUT, unless they are there."""
    run = read_run(options.run)
    about = About(read_description(run.policy, run.features), ())
    if not (options.out / "whole").is_dir():
        write_pack(options.out / "pack", Graphs(model, inputs), inputs, about)
        write_routes(options.out / "whole", model.stack, inputs, {"whole": range(model.stack.depth)}, "onnx", about)


@torch.no_grad()
def expected(model: SkipModel, inputs: dict[str, torch.Tensor], budgets: list[float]) -> dict[str, np.ndarray]:
    """What PyTorch answers every row, and on which route, at each budget."""
    found: dict[str, np.ndarray] = {}
    for budget in budgets:
        parts = torch.arange(row_count(inputs)).split(CHECKED)
        price = model.table.price_for(budget)
        rollouts = [routed_forward(model.stack, model.policy, trimmed(take_rows(inputs, rows)), price=price) for rows in parts]
        found[f"answers {budget:g}"] = torch.cat([rollout.outputs for rollout in rollouts]).numpy()
        found[f"routes {budget:g}"] = torch.cat([rollout.route for rollout in rollouts]).numpy()
    return found


def fresh_python(folder: Path) -> Path:
    """The Python of an environment with onnxruntime and NumPy alone."""
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=True)
        wanted = [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    return python


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of --task text")
    parser.add_argument("out", type=Path, help="a folder for what is made; what is there already is used")
    parser.add_argument("--data")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.33])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=192, help="test rows that are timed at each size, a third of them one by one")
    parser.add_argument("--repeats", type=int, default=5, help="times that each batch is run, of which the median counts")
    options = parser.parse_args()
    model, task = load_run(options.run, data=options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    export(options, model, task.load("validation").inputs)
    test = task.load("test").inputs
    if not (options.out / "rows.npz").is_file():
        rows = {f"inputs {name}": array for name, array in numpy_inputs(test).items()}
        np.savez(options.out / "rows.npz", **rows, **expected(model, test, options.budgets))
    numbers = {name: [str(value) for value in getattr(options, name)] for name in ("budgets", "batches", "threads")}
    words = [word for name, values in numbers.items() for word in (f"--{name}", *values)]
    clock = [Path(__file__).with_name("pack_clock.py"), options.out, *words, "--rows", str(options.rows), "--repeats", str(options.repeats)]
    subprocess.run([fresh_python(options.out / "venv").absolute(), *clock], check=True)


if __name__ == "__main__":
    main()
