"""The start that agents share: the state after the warm-up, in a file, at which another agent can begin."""

from pathlib import Path

import torch
from safetensors.torch import save as packed
from torch import Tensor

from agents.run.learner import Learner
from rl_skip.core.bounded import read_tensors
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.core.seal import check_sealed, is_sealed

__all__ = ["START", "load_start", "save_start"]

START = "start.safetensors"


def save_start(learner: Learner, file: Path) -> None:
    """Writes the network, its optimiser's moments, and the states of the random generators."""
    atomic_write(file, packed({name: tensor.detach().cpu().clone().contiguous() for name, tensor in _state(learner).items()}))


def load_start(learner: Learner, file: Path) -> None:
    """Restores the state after the warm-up of another run with the same options and seed, bit for bit.

    Raises:
        UserError: if the file cannot be read or is that of another network.
    """
    advice = f"remove it, and the warm-up is repeated: {file}"
    tensors = {name: tensor.clone() for name, tensor in read_tensors(file, advice).items()}
    if is_sealed(file.parent):
        check_sealed(file.parent, file.name)
    weights = {name.removeprefix("stack."): tensor for name, tensor in tensors.items() if name.startswith("stack.")}
    try:
        learner.stack.load_state_dict(weights)
        random = tensors["random.learner"], tensors["random.torch"]
    except (RuntimeError, KeyError) as error:
        raise UserError(f"the start does not fit the network ({' '.join(str(error).split())}); {advice}") from None
    state = learner.network_optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            state["state"].setdefault(int(number), {})[moment] = tensor
    learner.network_optimizer.load_state_dict(state)
    learner.generator.set_state(random[0])
    torch.set_rng_state(random[1])
    cuda = [tensors[f"random.cuda.{n}"] for n in range(torch.cuda.device_count()) if f"random.cuda.{n}" in tensors]
    if learner.device.type == "cuda" and cuda:
        torch.cuda.set_rng_state_all(cuda)


def _state(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"stack.{name}": tensor for name, tensor in learner.stack.state_dict().items()}
    for number, moments in learner.network_optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors |= {"random.learner": learner.generator.get_state(), "random.torch": torch.get_rng_state()}
    if learner.device.type == "cuda":
        tensors |= {f"random.cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors
