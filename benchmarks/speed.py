"""What routing costs by the clock: routed passes over the plain loop of the same layers, side by side in one process.

Each row of a batch runs layer 0 and a random choice of the others, so that the work that is left is known and the ratio to the plain loop shows
what is not layers. "Asked" means that a policy with readouts looks at every layer that a row runs, decides, is charged, and is then told to take
the known route, so that the work is the same with it and without. Times come from `torch.utils.benchmark` (blocked autorange). The ways take turns
in short rounds of alternating order; a ratio is taken within each round, and its median and quartiles over rounds are printed, so that a machine
that slows down slows both sides alike.

    python benchmarks/speed.py [--batches 1 8 64] [--threads 1 2] [--training] [--device cuda --precision bf16]
    python benchmarks/speed.py --batches 8 --figure speed.png     # how it changes with rows, layers, width, tokens, and the layers that are left
    python benchmarks/speed.py --model MODEL --data DATA          # a model from transformers on its test sentences
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import scales
from benchmarks.scales import SCALES, draw, left_at, scale_lines
from benchmarks.sentences import sentence_lines
from benchmarks.turns import CLOCKS, Taken, Way, host_syncs, in_turns, peak_bytes
from rl_skip import JumpPolicy, JumpRules, ObservationLayout, routed_forward
from rl_skip.core.compiled_decision import compile_policy
from rl_skip.core.features import default_features
from rl_skip.core.routers import FixedRoute, PolicyRouter
from rl_skip.nets.module_stack import ModuleStack
from rl_skip.nets.network import NetworkConfig, build_network

CLASSES = 10
COMPILED = ", compiled"
PLAIN, EVERYTHING, HALF = "plain loop", "everything, routed", "half of the layers, routed"
ASKED_EVERYTHING, ASKED_HALF, ASKED_QUARTER = "everything, asked", "half of the layers, asked", "a quarter by exits, asked"


def routes_left(rows: int, layers: int, left: float) -> Tensor:
    """(B, L) bool, each row with layer 0 and random others, a share `left` of the layers in total."""
    chance = torch.rand(rows, layers)
    chance[:, 0] = 2.0
    chosen = chance.topk(max(round(left * layers), 1), dim=1).indices
    return torch.zeros(rows, layers, dtype=torch.bool).scatter(1, chosen, True)


def plain_loop(stack: ModuleStack, x: Tensor) -> Tensor:
    """Full depth without any routing."""
    hidden = stack.embed(x)
    for layer in stack.layers:
        hidden = layer(hidden)
    return stack.head(hidden)


class Bench:
    """A network of random weights, its policy, and one batch with routes.

    Args:
        options: of the command line.
        rows: B.
        left: the share of the layers that rows run where not all of them do.
    """

    def __init__(self, options: argparse.Namespace, rows: int, left: float = 0.5) -> None:
        torch.manual_seed(0)
        self.device, L = torch.device(options.device), options.layers
        config = NetworkConfig(layers=L, width=options.width, heads=options.heads)
        self.precision = torch.bfloat16 if options.precision == "bf16" else None
        self.bare = self._stack(config, options.tokens)
        self.stack = self._stack(config, options.tokens)
        self.stack.load_state_dict(self.bare.state_dict())
        self.x = torch.randn(rows, options.tokens, options.width, device=self.device)
        readouts = self.stack.add_readouts(self.x[:1])
        layout = ObservationLayout(options.width, L, features=default_features(False, has_readouts=True), readout_flops=readouts.flops)
        self.policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True)).to(self.device)
        self.compiled = deepcopy(self.policy) if options.compile else None
        if self.compiled is not None:
            compile_policy(self.compiled, self.stack, layers=False)
        self.full = torch.ones(L, dtype=torch.bool, device=self.device)
        self.half = routes_left(rows, L, left).to(self.device)
        last = torch.arange(rows).remainder(max(L // 2 - 1, 1))[torch.randperm(rows)]  # the last layer of each, a quarter of all on average
        self.quarter = (torch.arange(L) <= last.unsqueeze(1)).to(self.device)

    def _stack(self, config: NetworkConfig, tokens: int) -> ModuleStack:
        stack = build_network(config, lambda width: torch.nn.Identity(), tokens, classes=CLASSES).to(self.device)
        assert isinstance(stack, ModuleStack)
        stack.autocast = self.precision
        return stack

    def plain(self) -> Tensor:
        """The layers one after the other."""
        with self.bare.computing(self.device):
            return plain_loop(self.bare, self.x)

    def routed(self, route: Tensor, asked: JumpPolicy | None = None) -> Tensor:
        """Along a route, (L,) or (B, L); a policy is `asked` after each layer, or nobody is."""
        stack, router = (self.bare, FixedRoute(route)) if asked is None else (self.stack, PolicyRouter(asked, route=route))
        return routed_forward(stack, router, self.x, price=0.1).outputs

    def forward_ways(self) -> dict[str, Way]:
        """What is timed without gradients."""
        calls: dict[str, Way] = {
            PLAIN: self.plain,
            EVERYTHING: partial(self.routed, self.full),
            HALF: partial(self.routed, self.half),
        }
        for policy, suffix in ((self.policy, ""), (self.compiled, COMPILED)):
            if policy is not None:
                routes = {ASKED_EVERYTHING: self.full, ASKED_HALF: self.half} | ({ASKED_QUARTER: self.quarter} if self.x.shape[0] > 1 else {})
                calls |= {name + suffix: partial(self.routed, route, policy) for name, route in routes.items()}
        return {name: partial(_without_gradients, call) for name, call in calls.items()}

    def training_ways(self) -> dict[str, Way]:
        """What is timed forward and backward."""
        calls: dict[str, Callable[[], Tensor]] = {PLAIN: self.plain, HALF: partial(self.routed, self.half)}
        return {name: partial(self._learn, call) for name, call in calls.items()}

    def _learn(self, call: Callable[[], Tensor]) -> None:
        self.bare.zero_grad(set_to_none=True)
        with nullcontext() if self.device.type == "cpu" else torch.cuda.device(self.device):
            call().float().square().mean().backward()

    def activations(self) -> tuple[int, int]:
        """Peak memory of forward and backward beyond the gradients of the weights, at full depth and over half of the layers."""
        for parameter in self.bare.parameters():
            parameter.grad = torch.zeros_like(parameter)
        found = []
        for call in (self.plain, partial(self.routed, self.half)):
            found.append(peak_bytes(lambda call=call: call().float().square().mean().backward(), self.device))  # type: ignore[misc]
        return found[0], found[1]


def _without_gradients(call: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return call()


def forward_lines(options: argparse.Namespace) -> None:
    """Prints the table of forward passes."""
    print("| rows | threads | way | ms | over the plain loop (quartiles) | host syncs |\n| ---: | ---: | --- | ---: | ---: | ---: |")
    for rows in options.batches:
        bench = Bench(options, rows)
        ways = bench.forward_ways()
        for threads in options.threads:
            taken = in_turns(ways, threads, options.rounds, options.seconds, options.clock)
            for name, one in taken.items():
                syncs = "" if options.device == "cpu" else host_syncs(ways[name])
                print(f"| {rows} | {threads} | {name} | {one.milliseconds:.2f} | {one} | {syncs} |")
            for suffix in ("", COMPILED) if options.compile else ("",):
                share = taken[ASKED_EVERYTHING + suffix].ratio - taken[EVERYTHING].ratio
                print(f"| {rows} | {threads} | policy's share of full depth, asked after every layer{suffix} | | {share:.3f} | |", flush=True)


def at_scale(options: argparse.Namespace, scale: str, value: float) -> dict[str, Taken]:
    """What routing costs where one size is another: of a batch of the first of the batch sizes, with the first number of threads."""
    sized = argparse.Namespace(**vars(options) | ({scale: int(value)} if scale in ("layers", "width", "tokens") else {}))
    ways = Bench(sized, int(value) if scale == "rows" else options.batches[0], left_at(scale, value)).forward_ways()
    named = {scales.EVERYTHING: EVERYTHING, scales.ROUTED: HALF, scales.ASKED: ASKED_HALF + COMPILED * options.compile}
    timed = {PLAIN: ways[PLAIN]} | {name: ways[way] for name, way in named.items()}
    return in_turns(timed, options.threads[0], options.rounds, options.seconds, options.clock)


def training_lines(options: argparse.Namespace) -> None:
    """Prints the table of forward and backward passes, with memory."""
    print("\n| rows | threads | forward and backward over half of the layers, over the plain loop | peak memory of activations |")
    print("| ---: | ---: | ---: | ---: |")
    for rows in options.training_batches:
        bench = Bench(options, rows)
        full, half = bench.activations()
        for threads in options.threads:
            taken = in_turns(bench.training_ways(), threads, options.rounds, options.seconds, options.clock)
            print(f"| {rows} | {threads} | {taken[HALF]} | {half / full:.3f} ({half / 2**20:.0f} of {full / 2**20:.0f} MiB) |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64], help="rows of the forward passes; none: leaves them out")
    parser.add_argument("--training-batches", type=int, nargs="*", default=[8], help="rows of the passes forward and backward")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="that each way is timed at least in a round")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor: on a machine that does other work too, with one thread")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--compile", action="store_true", help="times a policy that was compiled too; of scales, it alone")
    text = "in place of the tables of batch sizes, a small one for each of these, all else as it is, at the first of the batch sizes"
    parser.add_argument("--scale", nargs="+", choices=tuple(SCALES), default=[], help=text)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draws the scales, all of them unless --scale names some, into a picture")
    parser.add_argument("--model", help="a folder with a model from transformers: times it in place of a network of random weights")
    parser.add_argument("--data", help="its data, as train.py --task text takes them")
    parser.add_argument("--sentence-batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--sentences", type=int, default=64, help="that are timed")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.33, 0.5])
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, {options.device}, {options.rounds} rounds, {options.clock} clock")
    if options.model is not None:
        sentence_lines(options)
        return
    sizes = f"{options.layers} layers of width {options.width}, {options.tokens} tokens"
    print(f"{sizes}\n")
    if options.scale or options.figure is not None:
        options.scale = options.scale or list(SCALES)
        found = scale_lines(options, partial(at_scale, options))
        if options.figure is not None:
            fixed = f"{sizes}, {options.batches[0]} row{'s' * (options.batches[0] > 1)} where not said otherwise"
            draw(found, f"{fixed}; PyTorch {torch.__version__}, {options.device}, threads: {options.threads[0]}", options.figure)
        return
    if options.batches:
        forward_lines(options)
    if options.training_batches:
        training_lines(options)


if __name__ == "__main__":
    main()
