"""`python -m rl_skip export`: a run's policy as it is, or its routed network as graphs that run without rl_skip."""

from pathlib import Path
from typing import Any

from rl_skip.core.errors import UserError
from rl_skip.core.files import refuse_links
from rl_skip.export.graphs.folder import About
from rl_skip.export.graphs.layer_graphs import Graphs
from rl_skip.export.graphs.one_row import write_one_row
from rl_skip.export.graphs.pack import write_pack
from rl_skip.export.graphs.routes import GraphFormat, every_exit, write_routes
from rl_skip.export.policy_folder import copy_export, read_description
from rl_skip.measure.runs import MODEL, load_run, read_run

__all__ = ["export_graphs", "export_policy"]

TOKENIZER = "tokenizer.json"


def export_policy(run: Path, folder: Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Copies the policy of a finished run, checked, into a folder of its own, and its model from transformers with it.

    Args:
        run: the folder of the run.
        folder: what to make; it must not exist.
        allow_code: as `load_run` takes it.

    Raises:
        UserError: if there is no finished run, the folder exists, or a link is among what is copied.
    """
    finished = read_run(run, allow_code=allow_code)
    for part in (finished.policy, finished.folder / MODEL):
        refuse_links(part)
    model = finished.folder / MODEL
    copy_export(finished.policy, folder, features=finished.features, beside=[model] if model.is_dir() else ())
    return {"folder": str(folder), "files": sorted(file.name for file in folder.iterdir())}


def export_graphs(
    run: Path,
    folder: Path,
    form: GraphFormat,
    *,
    layers: tuple[int, ...] | None = None,
    exits: bool = False,
    one_row: bool = False,
    data: str | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Writes the network of a finished run as graphs.

    Args:
        run: the folder of the run.
        folder: what to make; it must not exist.
        form: "onnx" or "torch-export".
        layers: those of a route that all rows share.
        exits: a graph for each layer after which all rows leave.
        one_row: one graph with the policy inside, for one row at a time.
        data: where the data are, if not where the run read them.
        allow_code: as `load_run` takes it.

    Returns:
        The files, and by how much their answers differ at most from the network's. With neither `layers`, `exits` nor `one_row`: a pack.

    Raises:
        UserError: if there is no finished run, the folder exists, or the network cannot be exported.
    """
    if folder.is_symlink() or folder.exists():
        raise UserError(f"{folder} exists and is left as it is; name another folder")
    if form == "torch-export" and layers is None and not exits:
        raise UserError("torch.export holds routes that all rows share: set --layers or --exits, or --format onnx for the policy inside")
    model, task = load_run(run, data=data, allow_code=allow_code)
    finished, inputs = read_run(run, allow_code=allow_code), task.load("validation").inputs
    tokenizer = finished.folder / MODEL / TOKENIZER
    refuse_links(tokenizer)
    about = About(read_description(finished.policy, finished.features), task.classes, [tokenizer] if tokenizer.is_file() else [])
    if layers is not None or exits:
        routes = every_exit(model.stack.depth) if layers is None else {"route": layers}
        return write_routes(folder, model.stack, inputs, routes, form, about)
    return (write_one_row if one_row else write_pack)(folder, Graphs(model, inputs), inputs, about)
