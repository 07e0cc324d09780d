"""Weights in safetensors: written as they are, and read only into a network that they fit."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rl_skip.core.bounded import checked_header, read_tensors
from rl_skip.core.errors import UserError

__all__ = ["build", "count_weights", "read_weights", "save_weights"]

M = TypeVar("M", bound=nn.Module)
WRITE_ANEW = "write the folder anew"
RIGHT_NETWORK = "the weights go with the network that they were saved from"


def build(file: Path, make: Callable[[], M], description: str, state_of: Callable[[M], dict[str, Tensor]] = nn.Module.state_dict) -> M:
    """What `make` makes, with the weights in `file`, in evaluation mode; made only once the weights are known to fit.

    Args:
        description: the name of the file beside it that says what to make.
        state_of: the weights that belong in the file; all by default.

    Raises:
        UserError: if it cannot be made, or the weights do not fit.
    """
    try:
        with torch.device("meta"):
            expected = state_of(make())
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes that no tensor can have
        reason = str(error).splitlines()[0]
        raise UserError(f"{file.parent / description}: the sizes it names cannot be built ({reason}); restore the file") from None
    state = read_weights(file, expected)
    with torch.random.fork_rng(devices=[]):  # loading draws nothing from the caller's random numbers
        module = make()
    module.load_state_dict(state, strict=False, assign=True)
    return module.eval()


def read_weights(file: Path, expected: dict[str, Tensor], same_dtype: bool = False) -> dict[str, Tensor]:
    """The tensors in `file`, which must have the names and shapes of `expected`, and the types with `same_dtype`.

    Raises:
        UserError: naming the weight that is missing, unknown or of another shape or type.
    """
    if not file.is_file():
        raise UserError(f"there is no {file.name} in {file.parent}; {WRITE_ANEW}")
    state = read_tensors(file, WRITE_ANEW)
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{file}: the weight {name} is missing; {RIGHT_NETWORK}")
        saved = state[name]
        if saved.shape != tensor.shape:
            raise UserError(f"{file}: the weight {name} has shape {tuple(saved.shape)}, expected {tuple(tensor.shape)}; {RIGHT_NETWORK}")
        if same_dtype and saved.dtype != tensor.dtype:
            raise UserError(f"{file}: the weight {name} is {saved.dtype}, expected {tensor.dtype}; convert the network with .to() before loading")
    if unknown := sorted(state.keys() - expected.keys()):
        raise UserError(f"{file}: the weight {unknown[0]} is unknown; {RIGHT_NETWORK}")
    return {name: tensor.clone() for name, tensor in state.items()}  # in the file they are not aligned, which changes the last bit of sums


def count_weights(file: Path) -> int:
    """How many numbers a file of weights holds; none of them is read.

    Raises:
        UserError: if it is no such file.
    """
    if not file.is_file():
        raise UserError(f"there is no {file.name} in {file.parent}; {WRITE_ANEW}")
    with checked_header(file, WRITE_ANEW), safe_open(file, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118, it is no dictionary


def save_weights(file: Path, state: dict[str, Tensor]) -> None:
    """Writes the file."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}, file)
    file.chmod(0o644)  # safetensors lets nobody but the owner read it
