"""The start that agents share: the state after the warm-up, in a file, at which another agent can begin."""

from pathlib import Path

import torch
from safetensors.torch import save as packed
from torch import Tensor

from agents.run.descent import parameters_of
from agents.run.learner import Learner
from agents.run.moments import load_moments
from agents.run.split_tensors import gathered_state
from rl_skip.core.bounded import read_tensors
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.core.processes import together
from rl_skip.core.seal import check_sealed, is_sealed

__all__ = ["START", "load_start", "save_start", "teach_from"]

START = "start.safetensors"


def save_start(learner: Learner, file: Path) -> None:
    """Writes the network, its optimiser's moments, and the states of the random generators; the first of several processes does, when all call it."""
    state: dict[str, Tensor] = gathered_state(_state(learner))
    if together().first:
        atomic_write(file, packed({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}))


def load_start(learner: Learner, file: Path) -> None:
    """Restores the state after the warm-up of another run with the same options and seed, bit for bit.

    Raises:
        UserError: if the file cannot be read or is that of another network.
    """
    advice = f"remove it, and the warm-up is repeated: {file}"
    tensors = read_tensors(file, advice)
    if is_sealed(file.parent):
        check_sealed(file.parent, file.name)
    weights = {name.removeprefix("stack."): tensor for name, tensor in tensors.items() if name.startswith("stack.")}
    try:
        learner.stack.load_state_dict(weights)
        moments = _moments(learner, tensors)
        load_moments(learner.descent.network_optimizer, {**learner.descent.network_optimizer.state_dict(), "state": moments})
        learner.check_given(bytes(tensors["given"].tolist()).hex() if "given" in tensors else "")
        learner.generator.set_state(tensors["random.learner"])
        torch.set_rng_state(tensors["random.torch"])
    except (RuntimeError, KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"the start does not fit the network ({' '.join(str(error).split())}); {advice}") from None
    cuda = [tensors[f"random.cuda.{n}"] for n in range(torch.cuda.device_count()) if f"random.cuda.{n}" in tensors]
    if learner.device.type == "cuda" and cuda:
        torch.cuda.set_rng_state_all(cuda)


def teach_from(learner: Learner, file: Path) -> None:
    """Makes the network that another run had after its warm-up the teacher of a learner that has not begun, which stays as it is otherwise.

    Raises:
        UserError: as `load_start`.
    """
    weights = {name: tensor.clone() for name, tensor in learner.stack.state_dict().items()}
    optimizer, generator, random = learner.descent.network_optimizer.state_dict(), learner.generator.get_state(), learner.random_state()
    load_start(learner, file)
    learner.make_teacher()
    if learner.teacher is not None and not learner.teacher.isfinite().all():
        raise UserError(f"what the network of {file} says is not finite; remove it, and train the run anew, with a lower --learning-rate")
    learner.stack.load_state_dict(weights)
    learner.descent.network_optimizer.load_state_dict(optimizer)
    learner.generator.set_state(generator)
    learner.load_random_state(random)


def _moments(learner: Learner, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's moments of each parameter, in memory of their own once their shapes are known to be right: in the file they are not aligned.

    Raises:
        ValueError, IndexError: if there is no such parameter, or it has another shape.
    """
    parameters = parameters_of(learner.descent.network_optimizer)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, number, moment = name.split(".")
        if tensor.shape not in ((), parameters[int(number)].shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
        moments.setdefault(int(number), {})[moment] = tensor.clone()
    return moments


def _state(learner: Learner) -> dict[str, Tensor]:
    tensors = {f"stack.{name}": tensor for name, tensor in learner.stack.state_dict().items()}
    for number, moments in learner.descent.network_optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    if learner.given_digest:
        tensors["given"] = torch.frombuffer(bytearray.fromhex(learner.given_digest), dtype=torch.uint8)
    tensors |= {"random.learner": learner.generator.get_state(), "random.torch": torch.get_rng_state()}
    if learner.device.type == "cuda":
        tensors |= {f"random.cuda.{n}": state for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors
