"""Running all rows of a split in batches, as a network is deployed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import Tensor, nn

from rl_skip.core.inputs import by_length
from rl_skip.core.processes import together
from rl_skip.core.progress import rows_done
from rl_skip.core.task import Examples

__all__ = ["deployed", "in_batches"]


@contextmanager
def deployed(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules are in evaluation mode and gradients are off; afterwards each is in the mode that it was in."""
    modes = [module.training for module in modules]
    try:
        with torch.no_grad():
            for module in modules:
                module.eval()
            yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.train(training)


def in_batches(run: Callable[[Examples, Tensor], tuple[Tensor, ...]], examples: Examples, batch_size: int, *modules: nn.Module) -> list[Tensor]:
    """The results of `run` on all N examples, batch by batch, while the modules are deployed; rows of like length run together.

    Where several processes train together each runs some of the batches, which are the same batches as those of one process. Where the weights of a
    module are split over them, each runs as many: one that has a batch less runs the first once more, for the others' sake.

    Args:
        run: a batch, and which rows of the examples it holds, (B,) on the CPU → tensors, rows first.
        examples: on the device where they are to run.
        batch_size: B, of all batches but the last.
        modules: the modules that `run` calls.

    Returns:
        The tensors, (N, …) each, on the CPU, in the order of the examples.
    """
    order, processes = by_length(examples.inputs), together()
    own: list[tuple[Tensor, ...]] = []
    batches = order.split(batch_size)
    shares = [batches[rank :: processes.count] for rank in range(processes.count)]
    in_step = any(getattr(module, "split", None) is not None for module in modules)
    beyond = len(shares[0]) - len(shares[processes.rank]) if in_step else 0
    with deployed(*modules):
        for rows in shares[processes.rank]:
            results = run(examples.take(rows.to(examples.labels.device)), rows)
            own.append(tuple(result.cpu() for result in results) if processes.several else results)
            rows_done(min(len(own) * processes.count * batch_size, len(order)), len(order))
        for rows in batches[:beyond]:
            run(examples.take(rows.to(examples.labels.device)), rows)
    turns, back = zip_longest(*processes.gather(own)), order.argsort()  # a batch of each process, and then the next of each
    return [torch.cat(batches).cpu()[back] for batches in zip(*(results for turn in turns for results in turn if results), strict=True)]
