"""What several processes on this machine gain, send and lose: digits with 1, 2 and 4 processes of one thread.

Throughput is that of the joint updates, the median over a run's reports; bytes are what the kernel counted on the connections of
the first process, beside what one message of all gradients takes on paper, or gathering and adding up where the network is split (--shard);
held are weights and moments of the network in the first process; the accuracy is that on test data at the run's price.

    python benchmarks/processes.py
    python benchmarks/processes.py --processes 1 2 --task text --model MODEL --data DATA
    python benchmarks/processes.py --messages-alone --processes 2 4 --task text --data banking77 --layers 6 --width 384 --heads 12 --shard
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

import torch

import train
from agents.policy.reinforce import Reinforce
from agents.run.launch import joined
from agents.run.learner import Learner
from agents.run.split_tensors import is_split
from rl_skip.core.devices import pick_device
from rl_skip.tasks import load_task

MESSAGES = "--messages"
"""The first argument of the processes that measure their messages."""
UPDATES = 20
SENT = 200
"""Where in Linux's tcp_info the number of bytes that a connection sent is, 8 of them."""


def connections() -> Iterator[socket.socket]:
    """The TCP connections of this process."""
    for handle in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=os.dup(int(handle)))
        except OSError:
            continue
        with found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                yield found


def bytes_sent() -> int:
    """Over all connections of this process, as the kernel counts."""
    told = (connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) for connection in connections())
    return sum(struct.unpack_from("<Q", info, SENT)[0] for info in told if len(info) >= SENT + 8)


def measure_messages(flags: list[str]) -> None:
    """Prints bytes for an update: of the message, on paper for each process, and sent by the first one; and those that the first one holds."""
    with joined() as processes:
        config = train.read_options(flags)
        learner = Learner(config, load_task(config.task, config.data, config.options), pick_device(config.device))
        agent = Reinforce(learner)
        learner.end_warm_up()
        agent.update(learner.warmup_updates)
        begun = bytes_sent()
        for update in range(learner.warmup_updates + 1, learner.warmup_updates + 1 + UPDATES):
            metrics = agent.update(update)
        sent = (bytes_sent() - begun) / UPDATES
        learning = [weight for module in (learner.stack, learner.policy, learner.critic) for weight in module.parameters() if weight.requires_grad]
        message = 4 * (sum(weight.numel() for weight in learning) + len(learning) + len(metrics) - 1)  # the loss for the norm and the rate
        layers, rest = (4 * sum(weight.numel() for weight in kind) for kind in split_weights(learner))
        apart = layers + rest if learner.config.shard else 0
        # weights of layers go out twice, for the pass and for its gradient, the others' once; gradients of both once more
        on_paper = (processes.count - 1) / processes.count * (2 * (message - apart) + (3 * layers + 2 * rest if apart else 0))
        moments = [moment for state in learner.descent.network_optimizer.state.values() for moment in state.values()]
        held = sum(4 * (tensor.to_local() if is_split(tensor) else tensor).numel() for tensor in (*learner.stack.parameters(), *moments))
        if processes.first:
            print(f"{message} {on_paper:.0f} {sent:.0f} {held}")


def split_weights(learner: Learner) -> list[list[torch.nn.Parameter]]:
    """The weights that `--shard` splits, those of the layers and the others."""
    layers = {id(weight) for layer in getattr(learner.stack, "routed", ()) for weight in layer.parameters()}
    readouts = set() if learner.stack.readouts is None else {id(weight) for weight in learner.stack.readouts.parameters()}
    split = [weight for weight in learner.stack.parameters() if id(weight) not in readouts]
    return [[weight for weight in split if (id(weight) in layers) == of_layers] for of_layers in (True, False)]


def launch(count: int, arguments: list[str]) -> str:
    """What so many processes of one thread print."""
    launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    command = [sys.executable, *launcher, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=TOP, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout


def main() -> None:
    """Prints a line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--messages-alone", action="store_true", help="without the runs, which take longer")
    options, given = parser.parse_known_args()
    print(f"{torch.get_num_threads()} of {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; {' '.join(given) or 'digits'}")
    print("processes  rows a second  message  on paper  sent (bytes an update)  held (bytes)  accuracy  compute")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.processes:
            run, flags = Path(folder, str(count)), [flag for flag in given if count > 1 or flag != "--shard"]
            message = launch(count, [__file__, MESSAGES, *flags]).split()
            if options.messages_alone:
                print(f"{count:9}  {'-':>13}  {'  '.join(message)}", flush=True)
                continue
            launch(count, ["train.py", *flags, "--out", str(run)])
            entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            rates = sorted(entry["time/samples_per_second"] for entry in entries if "rollout/compute" in entry)
            report = json.loads((run / "report.json").read_text())["policy"]
            print(f"{count:9}  {rates[len(rates) // 2]:13.0f}  {'  '.join(message)}  {report['accuracy']:.3f}  {report['compute']:.3f}", flush=True)


if __name__ == "__main__":
    measure_messages(sys.argv[2:]) if sys.argv[1:2] == [MESSAGES] else main()
