"""One joint update of network, readouts and policy over one plain supervised update of the same batch at full depth.

The plain update is what a training loop without any of this package does: the layers one after the other, cross-entropy, backward, clipping
and AdamW on all parameters of a network without readouts. The joint update is the agent's whole update with the exact gradient: what a teacher
said, or the network's own full depth where there was no warm-up, the losses of all exits, observations, policy, both optimisers and the metrics.
Batches, batch size, rates and optimiser settings are the same. The two take turns in one process, and each pair has a ratio of its own: of the time
that passed, and of the time on the processor, which a machine with other work disturbs less. Flags that are not its own go to train.py. With
--sampled N the joint update is that of a policy that jumps instead, which learns from N sampled routes of each row.

    python benchmarks/updates.py
    python benchmarks/updates.py --sampled 2
    python benchmarks/updates.py --task text --model MODEL --data DATA --batch-size 32 --precision bf16 --pairs 30
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from agents.options.config import PolicyConfig, TrainConfig
from agents.policy.reinforce import Reinforce
from agents.run.learner import Learner
from rl_skip.attached.heads import answer
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.stack import LayerStack
from rl_skip.nets.module_stack import ModuleStack
from rl_skip.tasks import load_task

JOINT = ("--readouts", "--no-jumps", "--agent", "reinforce")
SAMPLED = ("--readouts", "--jumps", "--gradient", "sampled", "--agent", "reinforce", "--routes-per-input")
WARMING = 5
"""Pairs that are not counted."""


def plain_forward(stack: LayerStack, inputs: Inputs) -> Tensor:
    """The outputs at full depth, without anything of routing."""
    if isinstance(stack, HuggingFaceStack):
        assert isinstance(inputs, dict)
        outputs = stack.model(**inputs)
        return outputs.logits if stack.head is None else answer(stack.head, outputs.last_hidden_state, inputs["attention_mask"])
    assert isinstance(stack, ModuleStack) and stack.layers_take_mask
    embedded = stack.embed(inputs)
    hidden, mask = embedded if isinstance(embedded, tuple) else (embedded, None)
    for layer in stack.layers:
        hidden = layer(hidden, mask)
    outputs: Tensor = stack.head(hidden, mask)
    return outputs


def plain_update(learner: Learner, update: int) -> None:
    """One supervised update at full depth."""
    learner.set_learning_rates(update)
    batch, stack, optimizer = learner.batch(update), learner.stack, learner.descent.network_optimizer
    with torch.autocast(learner.device.type, learner.precision, enabled=learner.precision is not None):
        outputs = plain_forward(stack, batch.inputs)
    loss = learner.task.loss(outputs.float(), batch.labels).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(stack.parameters(), learner.config.schedule.max_grad_norm)
    optimizer.step()


def learners(config: TrainConfig, exact: bool) -> tuple[Learner, Reinforce]:
    """A network alone, and an agent that trains one with readouts and policy, with its teacher, if there is one; by the exact gradient or not."""
    task, device = load_task(config.task, config.data, config.options), torch.device("cpu")
    plain = Learner(replace(config, policy=PolicyConfig()), task, device)
    joint = Reinforce(Learner(config, task, device))
    if joint.exact != exact:
        raise SystemExit("without --sampled the joint update has the exact gradient; leave --gradient and --baseline out, or set --sampled")
    joint.learner.end_warm_up()
    if config.schedule.distillation_weight == 0:
        raise SystemExit("the joint update distils, from a teacher or from its own full depth; leave --distillation-weight out")
    return plain, joint


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """How long a call takes, by the clock and on the processor, all threads together."""
    begun = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def quartiles(values: Tensor) -> list[float]:
    """First quartile, median and third quartile."""
    found: list[float] = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    return found


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--sampled", type=int, metavar="N", help="routes of each row, of a policy that jumps; default: the exact gradient")
    options, flags = parser.parse_known_args()
    try:
        config = train.read_options([*flags, *(JOINT if options.sampled is None else (*SAMPLED, str(options.sampled)))])
        torch.set_num_threads(config.threads or 1)
        plain, joint = learners(config, exact=options.sampled is None)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    first = joint.learner.warmup_updates
    plain.stack.train()

    def joint_update(update: int) -> None:
        with joint.learner.stack.computing_in(joint.learner.precision):
            joint.update(update)

    pairs = []
    for update in range(first, first + WARMING + options.pairs):
        ways = [lambda: plain_update(plain, update), lambda: joint_update(update)]  # noqa: B023, called here
        order = (0, 1) if update % 2 else (1, 0)
        taken = {way: seconds(ways[way]) for way in order}
        pairs.append((taken[0], taken[1]))
    times = 1e3 * torch.tensor(pairs[WARMING:], dtype=torch.float64)  # (pairs, plain and joint, clock and processor)
    learns = "the exact gradient" if options.sampled is None else f"{options.sampled} sampled routes"
    print(f"{learns}; {config.task}, batches of {config.schedule.batch_size}, precision {config.schedule.precision}, {options.pairs} pairs")
    for kind, (plain_ms, joint_ms) in (("clock", times[:, :, 0].T), ("processor", times[:, :, 1].T)):
        for name, values, digits in (("plain, ms", plain_ms, 2), ("joint, ms", joint_ms, 2), ("joint / plain", joint_ms / plain_ms, 3)):
            low, median, high = quartiles(values)
            print(f"  {kind:10} {name:14} {median:8.{digits}f}   quartiles {low:.{digits}f} to {high:.{digits}f}")


if __name__ == "__main__":
    main()
