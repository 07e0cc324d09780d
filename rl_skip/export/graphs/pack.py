"""A routed network as a pack: the graphs of its layers for batches, one of everything for a row alone, and the runner that sends rows through them.

In the one graph nothing lies between two layers, so one row is answered sooner by it; it refers to the same weights.
"""

from pathlib import Path
from typing import Any

from rl_skip.core.inputs import Inputs
from rl_skip.export.graphs.external import WEIGHTS
from rl_skip.export.graphs.folder import About, checked_batches, same_routes, single_rows, write_folder
from rl_skip.export.graphs.layer_graphs import Graphs
from rl_skip.export.graphs.one_row import ONE_ROW, one_row_graph
from rl_skip.export.graphs.trace import require

__all__ = ["DESCRIPTION", "RUNNER", "write_pack"]

DESCRIPTION, RUNNER = "pack.json", "run_pack.py"


def write_pack(folder: Path, graphs: Graphs, inputs: Inputs, about: About) -> dict[str, Any]:
    """Writes the pack of a routed network, once it has answered like the network itself.

    Args:
        folder: what to make; it must not exist.
        graphs: those of the network.
        inputs: rows of its data, on which the pack is checked.
        about: what stands in its description.

    Returns:
        The files, and by how much answers differed at most from PyTorch's.

    Raises:
        UserError: if the folder exists, a package is missing, or the pack answers otherwise.
    """
    for name in ("numpy", "onnxruntime"):
        require(name)
    protos = {**graphs.by_file, ONE_ROW: one_row_graph(graphs)}
    files = {name: proto.SerializeToString() for name, proto in protos.items()}
    beside: dict[str, bytes | Path] = {WEIGHTS: bytes(graphs.weights.content), RUNNER: Path(__file__).with_name(RUNNER)}

    def check(new: Path) -> float:
        from rl_skip.export.graphs.run_pack import Pack

        pack = Pack(new)
        return same_routes(graphs.model, lambda rows, price: pack(rows, price)[:2], [*single_rows(inputs), *checked_batches(inputs)])

    more = {"shared": graphs.shared, "answers": graphs.answers}
    return write_folder(folder, DESCRIPTION, {**files, **beside}, graphs.first, about, more, check)
