"""Trains one agent of one library, plays the test rows with it, and writes what it earns. Called by `benchmarks/agents.py`.

    python -m benchmarks.outside.worker LIBRARY AGENT STEPS SEED RESULT
"""

import importlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.outside.play import play


def main() -> None:
    """Trains, plays and writes."""
    library, agent, steps, seed, result = sys.argv[1:]
    torch.set_num_threads(1)
    started = time.perf_counter()
    choose, taken = importlib.import_module(f"benchmarks.outside.{library}").train(agent, int(steps), int(seed))
    seconds = time.perf_counter() - started
    found = {"agent": agent, "seed": int(seed), "steps": taken, "seconds": round(seconds), **play(choose), "gymnasium": version("gymnasium")}
    Path(result).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
