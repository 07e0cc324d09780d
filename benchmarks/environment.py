"""How fast the environment is: the native vector environment beside the bare layers and beside Stable-Baselines3's `DummyVecEnv` of single ones.

All play random legal jumps. The environment's row-layers are counted, those of layer 0 where an episode begins included, and divided into its time;
embedding, head, observations, rewards and infos are in that time and in no other. The bare layers are called without a gradient on hidden states that
lie ready, (1) on N rows at once, (2) on just as many rows in each call as the environment had. What (2) is above (1) is the lower bound of any
environment that answers after every step: rows of different age need different layers, so N rows are up to L calls. The ways take turns, see
`benchmarks/turns.py`; ratios are taken within a round, and their median and quartiles are printed.

    python benchmarks/environment.py [--networks digits wide] [--num-envs 64 1024] [--dummy 64] [--clock processor]
    python benchmarks/environment.py --parts                      # where the time of a step goes
    python benchmarks/environment.py --memory                     # what 64 single environments of one run hold
"""

import argparse
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from benchmarks.turns import CLOCKS, Way, in_turns
from envs import LayerSkipEnv, LayerSkipVectorEnv
from rl_skip import Examples, JumpRules
from rl_skip.core.stack import LayerStack
from rl_skip.nets.network import NetworkConfig, build_network

FULL, SAME, NATIVE, DUMMY = "bare layers, N rows a call", "bare layers, the environment's calls", "native", "DummyVecEnv"
Call = tuple[int, int]
"""A layer, and on how many rows it ran."""


class RandomLegal:
    """Random legal jumps of N environments whose ended episodes are followed by others in the same step.

    Args:
        rules: what is legal.
        num_envs: N.
    """

    def __init__(self, rules: JumpRules, num_envs: int) -> None:
        L, legal = rules.layout.depth, rules.legal.numpy()
        self.position, self.random = np.zeros(num_envs, dtype=np.int64), np.random.default_rng(0)
        self.count = legal.sum(axis=1)  # (L,)
        self.jump = np.argsort(~legal, axis=1, kind="stable")  # (L, J + 1), the legal ones first
        waits = [i for i in range(L) if rules.choices[i]]
        self.after = np.zeros_like(self.jump)  # (L, J + 1), the next layer after which there is a choice; 0: the first of another episode
        for layer, jump in np.argwhere(legal):
            self.after[layer, jump] = next((i for i in waits if i >= rules.next_after(layer, jump)), 0)

    def __call__(self) -> np.ndarray[Any, Any]:
        """(N,), the jumps of the next step."""
        jumps = self.jump[self.position, (self.random.random(len(self.position)) * self.count[self.position]).astype(np.int64)]
        self.position = self.after[self.position, jumps]
        return jumps


def options_of(network: str, options: argparse.Namespace) -> dict[str, Any]:
    """What makes an environment around that network: the one that the task digits builds, or one of random weights on random tokens."""
    if network == "digits":
        return {"task": "digits"}
    config = NetworkConfig(layers=options.layers, width=options.width, heads=options.heads)
    torch.manual_seed(0)
    stack = build_network(config, lambda _width: torch.nn.Identity(), options.tokens, classes=10)
    return {"stack": stack, "examples": Examples(torch.randn(256, options.tokens, options.width), torch.arange(256) % 10)}


def steps(env: Any, chosen: RandomLegal, count: int) -> None:
    """Plays so many steps."""
    for _ in range(count):
        env.step(chosen())


def calls_of(env: LayerSkipVectorEnv, chosen: RandomLegal, count: int) -> list[Call]:
    """The layers that ran in so many steps."""
    stack, calls = env.core.stack, []
    run = stack.run

    def counted(i: int, carry: Any, rows: Tensor | None) -> Tensor:
        calls.append((i, carry.hidden.shape[0] if rows is None else rows.shape[0]))
        return run(i, carry, rows)

    stack.run = counted  # type: ignore[method-assign]
    steps(env, chosen, count)
    del stack.run
    return calls


@torch.no_grad()
def bare(stack: LayerStack, hidden: Tensor, calls: list[Call]) -> None:
    """The layers alone, on the first rows of a hidden state."""
    for i, rows in calls:
        stack.layers[i](hidden[:rows], None)  # type: ignore[operator, index]


class Parts:
    """Time on the processor that calls take, by the name of a part, each without the calls of other parts within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within = [0.0]

    def time(self, owner: Any, method: str, part: str) -> None:
        """From here on the calls of a method belong to a part."""
        call = getattr(owner, method)
        self.seconds.setdefault(part, 0.0)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            self._within.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                taken, within = time.process_time() - begun, self._within.pop()
                self._within[-1] += taken
                self.seconds[part] += taken - within

        setattr(owner, method, timed)


def parts_of(env: LayerSkipVectorEnv, chosen: RandomLegal, count: int) -> dict[str, float]:
    """Microseconds of a step, by part, in so many steps. The timers' own time is in them."""
    core, parts = env.core, Parts()
    assert core.state is not None
    for layer in core.stack.layers:  # type: ignore[union-attr]
        parts.time(layer, "forward", "layers")
    for owner, method, part in (
        (core.stack, "begin", "embedding"),
        (core.stack, "finish", "head"),
        (core.stack, "run", "rows of a layer gathered and written back"),
        (core, "_run", "where rows go, and what they spend"),
        (core.state, "observe", "observations"),
        (core, "_begin", "new episodes"),
        (core, "_end", "scores and routes of ends"),
        (core, "step", "rewards"),
        (env, "step", "actions and infos"),
    ):
        parts.time(owner, method, part)
    steps(env, chosen, count)
    return {part: 1e6 * seconds / count for part, seconds in parts.seconds.items()}


def parts_lines(network: str, num_envs: int, options: argparse.Namespace) -> None:
    """Prints where the time of a step goes, over the time of as many row-layers in the bare layers at N rows."""
    env = LayerSkipVectorEnv(num_envs, **options_of(network, options))
    env.reset(seed=0)
    chosen, stack = RandomLegal(env.core.rules, num_envs), env.core.stack
    row_layers = sum(rows for _, rows in calls_of(env, chosen, options.counted)) / options.counted
    with torch.no_grad():
        hidden = stack.begin(env.core.examples.take(torch.arange(num_envs) % len(env.core.examples)).inputs).hidden
    at_once = [(i, num_envs) for i in range(stack.depth)]
    taken = in_turns({FULL: partial(bare, stack, hidden, at_once)}, 1, options.rounds, options.seconds, "processor")[FULL]
    of_bare = 1e3 * taken.milliseconds / (stack.depth * num_envs) * row_layers  # microseconds of one step's
    for part, microseconds in parts_of(env, chosen, options.counted).items():
        print(f"| {network} | {num_envs} | {part} | {microseconds:.0f} | {microseconds / of_bare:.2f} |", flush=True)


def lines_of(network: str, num_envs: int, options: argparse.Namespace) -> None:
    """Prints the rows of the table for one network and one number of environments."""
    made = options_of(network, options)
    env = LayerSkipVectorEnv(num_envs, **made)
    stack, rules = env.core.stack, env.core.rules
    env.reset(seed=0)
    chosen = RandomLegal(rules, num_envs)
    steps(env, chosen, stack.depth)  # after which the environments are at different layers
    counted = max(8, min(options.counted, 16384 // num_envs))
    calls = calls_of(env, chosen, counted)
    row_layers = sum(rows for _, rows in calls) / counted  # of one step
    with torch.no_grad():
        hidden = stack.begin(env.core.examples.take(torch.arange(num_envs) % len(env.core.examples)).inputs).hidden
    at_once: list[Call] = [(i, num_envs) for i in range(max(1, min(stack.depth, 4096 // num_envs)))]
    same = calls_of(env, chosen, max(1, min(counted, 2048 // num_envs)))
    ways: dict[str, Way] = {
        FULL: partial(bare, stack, hidden, at_once),
        SAME: partial(bare, stack, hidden, same),
        NATIVE: partial(steps, env, chosen, 1),
    }
    row_layers_of = {FULL: sum(rows for _, rows in at_once), SAME: sum(rows for _, rows in same), NATIVE: row_layers}
    taken = in_turns(ways, 1, options.rounds, options.seconds, options.clock)
    sizes = np.array([rows for _, rows in calls])
    shape = f"{network} | {num_envs}"
    for name, one in taken.items():
        share = row_layers_of[FULL] / row_layers_of[name]  # ratios for each row and layer
        per_second = f"{1e3 * num_envs / one.milliseconds:,.0f}" if name == NATIVE else ""
        ratio = f"{one.ratio * share:.2f} ({one.low * share:.2f} to {one.high * share:.2f})"
        print(f"| {shape} | {name} | {1e3 * one.milliseconds / row_layers_of[name]:.1f} | {ratio} | {per_second} |", flush=True)
    if num_envs == options.dummy:
        dummy = DummyVecEnv([lambda: LayerSkipEnv(**made)] * num_envs)
        dummy.reset()
        both: dict[str, Way] = {NATIVE: ways[NATIVE], DUMMY: partial(steps, dummy, RandomLegal(rules, num_envs), 1)}
        one = in_turns(both, 1, options.rounds, options.seconds, options.clock)[DUMMY]
        per_row_layer, per_second = 1e3 * one.milliseconds / row_layers, f"{1e3 * num_envs / one.milliseconds:,.0f}"
        print(f"| {shape} | {DUMMY} | {per_row_layer:.1f} | {one} of native | {per_second} |")
    had = f"{row_layers:.1f} | {len(calls) / counted:.1f} | {np.median(sizes):.0f}"
    print(f"| {shape} | row-layers in a step; calls in a step; rows in a call, median | {had} |", flush=True)


def memory_line(options: argparse.Namespace) -> None:
    """Prints what single environments of one run hold."""
    before = _resident()
    made = {"run": options.run} if options.run else {"task": "digits"}
    held = [LayerSkipEnv(**made)]
    held[0].reset(seed=0)
    one = _resident()
    held += [LayerSkipEnv(**made) for _ in range(options.dummy - 1)]
    for env in held:
        env.reset(seed=0)
    print(f"{options.dummy} single environments of {made}: the first {one - before:.0f} MB, the others together {_resident() - one:.0f} MB")


def _resident() -> float:
    """Memory that this process holds, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=("digits", "wide"), default=["digits", "wide"])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--dummy", type=int, default=64, help="single environments in a DummyVecEnv, beside as many native ones")
    parser.add_argument("--layers", type=int, default=12, help="of the wide network, and so on")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--counted", type=int, default=200, help="steps in which row-layers are counted, at most")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="that each way is timed at least in a round")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="processor: on a machine that does other work too")
    parser.add_argument("--parts", action="store_true", help="in place of speed: where the time of a step goes, by the processor clock")
    parser.add_argument("--memory", action="store_true", help="in place of speed: what single environments hold")
    parser.add_argument("--run", help="of the run in this folder, with --memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        memory_line(options)
        return
    if options.parts:
        print("| network | N | part | µs of a step | over the bare layers at N rows |\n| --- | ---: | --- | ---: | ---: |")
        for network in options.networks:
            for num_envs in options.num_envs:
                parts_lines(network, num_envs, options)
        return
    print(f"PyTorch {torch.__version__}, one thread, {options.rounds} rounds, {options.clock} clock\n")
    print("| network | N | way | µs for each row and layer | over the bare layers at N rows (quartiles) | steps of one environment in a second |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for network in options.networks:
        for num_envs in options.num_envs:
            lines_of(network, num_envs, options)


if __name__ == "__main__":
    main()
