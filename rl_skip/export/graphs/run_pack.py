"""Runs a network that rl_skip exported as a pack: each row through its own layers, the policy inside. Needs NumPy and onnxruntime alone.

    pack = Pack("path/to/this/folder")
    answers, routes, compute = pack({"input_ids": ids, "attention_mask": mask}, budget=0.5)
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FORMAT, WEIGHTS, BEGIN, ONE_ROW = 2, "weights.data", "begin.onnx", "one_row.onnx"
"""What this runner reads; what all graphs refer to, the graph before the layers, and that of everything, for a row alone."""


class Pack:
    """A routed network. `threads`: those of one operator. `price`: in score per unit of compute; higher skips more.

    `one_pool`: the graphs share their threads, which is faster with several. Every other session of the process must then share them too, with
    `use_per_session_threads = False`; how many there are is said by who makes the first.
    """

    def __init__(self, folder: Path | str, threads: int = 1, one_pool: bool = False) -> None:
        folder = Path(folder)
        self.about = checked(folder)
        if one_pool:
            with contextlib.suppress(Exception):  # the process has a pool already, which is then used
                onnxruntime.set_global_thread_pool_sizes(threads, 1)
        graphs = {}
        for name in [name for name in self.about["files"] if name.endswith(".onnx")]:
            options = onnxruntime.SessionOptions()
            if one_pool:
                options.use_per_session_threads = False
            else:
                options.intra_op_num_threads = threads
                if name != ONE_ROW:  # or the threads of one layer would disturb the next
                    options.add_session_config_entry("session.force_spinning_stop", "1")
            graphs[name] = onnxruntime.InferenceSession(folder / name, options)
        self.axes = {value.name: value.shape for value in graphs[BEGIN].get_inputs()}
        wanted = {name: [value.name for value in graph.get_inputs()] for name, graph in graphs.items()}
        given = {name: [value.name.removeprefix("new.") for value in graph.get_outputs()] for name, graph in graphs.items()}
        self.run = lambda name, state: dict(zip(given[name], graphs[name].run(None, {key: state[key] for key in wanted[name]}), strict=True))
        self.price = self.about["policy"]["price"]

    def price_for(self, budget: float) -> float:
        """The price that led to a mean compute of `budget` on validation data."""
        points = self.about["policy"]["price_table"]  # compute ascends, price descends
        if not points:
            raise ValueError("the policy knows one price alone")
        least, most = points[0]["compute"], max(1, points[-1]["compute"])
        if not least <= budget <= most:
            raise ValueError(f"a budget must lie in [{least:.4f}, {most:.4g}], got {budget}")
        for low, high in itertools.pairwise(points):
            if budget < high["compute"]:
                share = (budget - low["compute"]) / (high["compute"] - low["compute"])
                return low["price"] * (1 - share if high["price"] == 0 else math.pow(high["price"] / low["price"], share))
        return points[-1]["price"]

    def __call__(self, inputs: Any, price: Any = None, budget: float | None = None) -> tuple[Any, Any, Any]:
        """Answers (B, ...), routes (B, L) bool, compute (B,) of B rows, at one price or one for each row."""
        about, depth = self.about, self.about["policy"]["depth"]
        inputs, rows = self.arrays(inputs)
        if budget is not None and price is not None:
            raise ValueError("a price and a budget exclude each other; give one of them")
        price = self.price_for(budget) if budget is not None else self.price if price is None else price
        if np.shape(price) not in ((), (rows,)):
            raise ValueError(f"a price is one number or one for each of {rows} rows, got shape {np.shape(price)}")
        prices = np.full(rows, price, dtype=np.float32)
        if not (np.isfinite(prices) & (prices >= 0)).all():
            raise ValueError(f"a price is a finite number of at least 0, got {price}")
        if rows == 1:
            said = self.run(ONE_ROW, inputs | {"price": prices})
            return said["answers"], said["route"], said["compute"]
        state = self.run(BEGIN, inputs)
        shared = {name: state.pop(name) for name in about["shared"]}  # by all rows
        state |= {"row": np.arange(rows), "price": prices}
        routes, compute, answers = np.zeros((rows, depth), dtype=bool), np.zeros(rows, dtype=np.float32), None
        arriving = {0: [state]}  # by layer, groups of rows
        for i in range(depth):
            groups = arriving.pop(i, [])
            if not groups:
                continue
            state = groups[0] if len(groups) == 1 else {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
            state |= self.run(f"layer_{i}.onnx", state | shared)
            routes[state["row"], i] = True
            following = state.pop("next_layer")
            for layer in set(following.tolist()):
                here = np.flatnonzero(following == layer)
                some = state if len(here) == len(following) else {name: values[here] for name, values in state.items()}
                if layer < depth:
                    arriving.setdefault(layer, []).append({name: values for name, values in some.items() if name != "answers"})
                    continue
                some |= self.run(about["answers"][i], some | shared) if about["answers"][i] else {}
                answers = np.zeros((rows, *some["answers"].shape[1:]), some["answers"].dtype) if answers is None else answers
                answers[some["row"]], compute[some["row"]] = some["answers"], some["spent"]
        return answers, routes, compute

    def arrays(self, inputs: Any) -> tuple[dict[str, Any], int]:
        """What the network is given, by name, and how many rows it is."""
        given, kinds = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}, self.about["inputs"]
        if missing := kinds.keys() - given.keys():
            raise ValueError(f"the network takes {', '.join(kinds)}, and {', '.join(sorted(missing))} was not given")
        arrays = {name: np.asarray(given[name], dtype=kind) for name, kind in kinds.items()}
        sizes: dict[str | int, int] = {}
        for name, axes in self.axes.items():  # a number, or the name of a size that may be any
            shape = arrays[name].shape
            expected = [axis if isinstance(axis, int) else sizes.setdefault(axis, size) for axis, size in zip(axes, shape, strict=False)]
            if len(shape) != len(axes) or list(shape) != expected or shape[0] != len(next(iter(arrays.values()))):
                shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
                raise ValueError(f"the inputs do not fit the network or one another, got shapes {shapes}; {name} has the axes {axes}")
        rows = len(next(iter(arrays.values())))
        if rows == 0:
            raise ValueError("a batch holds at least one row")
        return arrays, rows


def checked(folder: Path) -> dict[str, Any]:
    """The description of a pack, whose files are those that were exported with it."""
    about = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
    if about["format_version"] != FORMAT:
        raise ValueError(f"{folder} is a pack of format {about['format_version']}, this runner reads {FORMAT}; take the run_pack.py that lies in it")
    needed = {WEIGHTS, BEGIN, ONE_ROW, f"layer_{about['policy']['depth'] - 1}.onnx"}
    for name in needed | about["files"].keys():
        if name not in about["files"] or Path(name).name != name or not (folder / name).is_file():  # elsewhere, or a device that never ends
            raise ValueError(f"{folder / 'pack.json'} names {name!r}, which is no file in its folder; export it anew")
        with (folder / name).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != about["files"][name]:
            raise ValueError(f"{folder / name} is not the file that was exported with this pack; export it anew")
    return about
