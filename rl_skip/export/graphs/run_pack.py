"""Runs a network that rl_skip exported as a pack: each row through its own layers, the policy inside. Needs NumPy and onnxruntime alone.

    pack = Pack("path/to/this/folder")
    answers, routes, compute = pack({"input_ids": ids, "attention_mask": mask}, budget=0.5)
"""

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

WEIGHTS, ONE_ROW = "weights.data", "one_row.onnx"
"""What all graphs refer to, and the graph of everything, for a row alone; the others are for batches."""


class Pack:
    """A routed network. `threads`: those of one operator. `price`: in score per unit of compute; higher skips more.

    `one_pool`: the graphs share their threads, which is faster with several. Every other session of the process must then share them too, with
    `use_per_session_threads = False`, and the first pack says how many there are.
    """

    has_pool = False

    def __init__(self, folder: Path | str, threads: int = 1, one_pool: bool = False) -> None:
        folder = Path(folder)
        self.about = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        for name, digest in self.about["files"].items():
            if Path(name).name != name or not (folder / name).is_file():  # elsewhere, or a device that never ends
                raise ValueError(f"{folder / 'pack.json'} names {name!r}, which is no file in its folder; export it anew")
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{folder / name} is not the file that was exported with this pack; export it anew")
        if (folder / WEIGHTS).is_symlink():
            raise ValueError(f"{folder / WEIGHTS} is a link, through which onnxruntime reads nothing; copy the pack with 'cp -rL'")
        if one_pool and not Pack.has_pool:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
            Pack.has_pool = True
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
        inputs = inputs if isinstance(inputs, dict) else {"inputs": inputs}
        about, depth = self.about, self.about["policy"]["depth"]
        inputs = {name: np.asarray(inputs[name], dtype=kind) for name, kind in about["inputs"].items()}
        rows = len(next(iter(inputs.values())))
        if budget is not None and price is not None:
            raise ValueError("a price and a budget exclude each other; give one of them")
        price = self.price_for(budget) if budget is not None else self.price if price is None else price
        prices = np.full(rows, price, dtype=np.float32)
        if not (np.isfinite(prices) & (prices >= 0)).all():
            raise ValueError(f"a price is a finite number of at least 0, got {price}")
        if rows == 1:
            said = self.run(ONE_ROW, inputs | {"price": prices})
            return said["answers"], said["route"], said["compute"]
        state = self.run("begin.onnx", inputs)
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
