"""The half of `pack.py` that runs with onnxruntime and NumPy alone: compares all rows with what PyTorch said, then lets all ways take turns.

    python benchmarks/pack_clock.py OUT [--budgets 0.5 0.33] [--batches 1 32] [--threads 1 2]
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

BATCH = 32


def batch_of(rows, numbers):
    """Rows without padding that none of them needs."""
    batch = {name.removeprefix("inputs "): values[numbers] for name, values in rows.items() if name.startswith("inputs ")}
    longest = int(batch["attention_mask"].sum(axis=1).max())
    return {name: np.ascontiguousarray(values[:, :longest]) for name, values in batch.items()}


def compare(pack, rows, budgets):
    """Prints, for each budget, how many rows took PyTorch's route, and by how much the answers differ at most."""
    count = len(next(iter(rows.values())))
    for budget in budgets:
        for size in (1, BATCH):
            parts = [pack(batch_of(rows, slice(at, at + size)), budget=budget) for at in range(0, count, size)]
            answers, routes, compute = (np.concatenate(said) for said in zip(*parts, strict=True))
            same = (routes == rows[f"routes {budget:g}"]).all(axis=1).sum()
            off = np.abs(answers - rows[f"answers {budget:g}"]).max()
            print(f"budget {budget:g}, batch {size}: {same} of {count} routes the same, logits within {off:.1e}, mean compute {compute.mean():.3f}")


def medians(ways, batches, repeats, stretch):
    """Seconds of each way for each batch, (N,); the ways take turns after so many batches, for what runs after another finds the caches cold."""
    taken = {name: np.zeros((repeats, len(batches))) for name in ways}
    for repeat in range(-1, repeats):  # the first round warms up
        for start in range(0, len(batches), stretch):
            for name, way in ways.items():
                for n, batch in enumerate(batches[start : start + stretch], start):
                    started = time.perf_counter()
                    way(batch)
                    if repeat >= 0:
                        taken[name][repeat, n] = time.perf_counter() - started
    return {name: np.median(times, axis=0) for name, times in taken.items()}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.33])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stretch", type=int, default=16, help="batches after which the ways take turns; a process runs one way alone")
    parser.add_argument("--one-pool", action="store_true", help="all graphs of the process share one pool of threads; with one number of threads")
    options = parser.parse_args()
    if options.one_pool and len(options.threads) != 1:
        raise SystemExit("a process has one pool: set --threads N")
    found = {name: importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "rl_skip")}
    absent = ", ".join(name for name, there in found.items() if not there)
    print(f"Python {sys.version.split()[0]}, onnxruntime {onnxruntime.__version__}, NumPy {np.__version__}; not installed: {absent}")
    sys.path.insert(0, str(options.out / "pack"))
    from run_pack import Pack

    rows = dict(np.load(options.out / "rows.npz"))
    if not options.one_pool:
        compare(Pack(options.out / "pack"), rows, options.budgets)
    print("\n| threads | rows in a batch | whole network, ms |", " | ".join(f"pack at {b:g}" for b in options.budgets), "|")
    print("| ---: | ---: | ---: |" + " ---: |" * len(options.budgets))
    for threads in options.threads:
        settings = onnxruntime.SessionOptions()
        if options.one_pool:
            pack = Pack(options.out / "pack", threads, one_pool=True)  # before any other session
            settings.use_per_session_threads = False
        else:
            pack = Pack(options.out / "pack", threads)
            settings.intra_op_num_threads = threads
        whole = onnxruntime.InferenceSession(options.out / "whole" / "whole.onnx", settings)
        for size in options.batches:
            ways = {"whole": lambda batch, whole=whole: whole.run(None, batch)}
            for budget in options.budgets:
                ways[f"pack {budget:g}"] = lambda batch, budget=budget, pack=pack: pack(batch, budget=budget)
            timed = options.rows if size > 1 else max(options.rows // 3, 1)
            times = medians(ways, [batch_of(rows, slice(at, at + size)) for at in range(0, timed, size)], options.repeats, options.stretch)
            cells = [f"{times['whole'].sum() / times[f'pack {budget:g}'].sum():.2f} times as fast" for budget in options.budgets]
            print(f"| {threads} | {size} | {1e3 * times['whole'].mean():.1f} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
