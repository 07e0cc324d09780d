"""Time that skipping half of the layers saves: the routed forward pass against the full forward pass, and forward plus backward likewise.

Each row of a batch runs layer 0 and a random choice of the others, half of all layers in total, so the work is half and
0.5 would be a routed forward pass without any overhead. Full depth is timed twice: by a plain loop over the layers and by the routed forward pass
itself. The ways take turns within one run, so that a machine that slows down slows all of them; medians are compared.

    python benchmarks/saving.py
    python benchmarks/saving.py --threads 2 --json
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_skip import routed_forward  # noqa: E402
from rl_skip.core.stack import ModuleStack  # noqa: E402
from rl_skip.nets.network import NetworkConfig, build_network  # noqa: E402

BOUND = 0.58


def half_routes(rows: int, layers: int) -> Tensor:
    """(B, L) bool, each row with layer 0 and random others, half of the layers in total."""
    chance = torch.rand(rows, layers)
    chance[:, 0] = 2.0
    chosen = chance.topk(layers // 2, dim=1).indices
    return torch.zeros(rows, layers, dtype=torch.bool).scatter(1, chosen, True)


def plain(stack: ModuleStack, x: Tensor) -> Tensor:
    """Full depth without any routing."""
    hidden = stack.embed(x)
    for layer in stack.layers:
        hidden = layer(hidden)
    return stack.head(hidden)


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, with everything that it started on the device."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Medians of each way, and the ratios of the routed forward pass over half to full depth."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = NetworkConfig(layers=options.layers, width=options.width, heads=options.heads)
    stack = build_network(config, lambda width: nn.Identity(), options.tokens, classes=10).to(device)
    assert isinstance(stack, ModuleStack)
    x = torch.randn(options.batch, options.tokens, options.width, device=device)
    half, full = half_routes(options.batch, options.layers).to(device), torch.ones(options.layers, dtype=torch.bool, device=device)
    ways: dict[str, Callable[[], Tensor]] = {
        "half": lambda: routed_forward(stack, half, x).outputs,
        "full": lambda: plain(stack, x),
        "full_routed": lambda: routed_forward(stack, full, x).outputs,
    }

    def forward(way: str) -> None:
        with torch.no_grad():
            ways[way]()

    def forward_backward(way: str) -> None:
        stack.zero_grad(set_to_none=True)
        ways[way]().square().mean().backward()

    report: dict[str, object] = {name: getattr(options, name) for name in ("layers", "width", "tokens", "batch", "threads", "device", "repeats")}
    report["torch"], report["share_of_layers_run"] = torch.__version__, half.float().mean().item()
    for name, run in (("forward", forward), ("forward_backward", forward_backward)):
        times: dict[str, list[float]] = {way: [] for way in ways}
        for repeat in range(options.repeats + 1):
            for way in ways:
                spent = milliseconds(lambda run=run, way=way: run(way), device)  # type: ignore[misc]
                if repeat > 0:  # the first round warms up
                    times[way].append(spent)
        medians = {way: statistics.median(values) for way, values in times.items()}
        report[name] = {f"{way}_ms": round(median, 2) for way, median in medians.items()} | {
            "ratio": round(medians["half"] / medians["full"], 4),
            "ratio_to_full_routed": round(medians["half"] / medians["full_routed"], 4),
        }
    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    report = measure(options)
    if options.json:
        print(json.dumps(report))
        return
    size = f"{options.layers} layers, width {options.width}, {options.tokens} tokens, batch {options.batch}"
    print(f"{size}, {options.threads} threads, {options.device}")
    for name in ("forward", "forward_backward"):
        times = report[name]
        assert isinstance(times, dict)
        verdict = f"ratio {times['ratio']:.3f}, at most {BOUND}" if times["ratio"] <= BOUND else f"ratio {times['ratio']:.3f}, ABOVE {BOUND}"
        print(f"{name.replace('_', ' + '):18} half {times['half_ms']:9.2f} ms   full {times['full_ms']:9.2f} ms   {verdict}")


if __name__ == "__main__":
    main()
