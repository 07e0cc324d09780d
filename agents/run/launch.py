"""Joining the processes that torchrun, accelerate launch or MPI have started beside this one, so that they train one network together."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch
from torch import distributed

from rl_skip.core.errors import UserError
from rl_skip.core.processes import ALONE, Processes, together, working

__all__ = ["accelerate_defaults", "joined", "launched", "leave", "refuse_shared_device"]

COUNT = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK")
"""Variables in which torchrun and accelerate launch, Open MPI, Intel MPI and MVAPICH say how many processes there are, and which is this."""
OF_ACCELERATE = {"precision": "ACCELERATE_MIXED_PRECISION", "accumulate": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"}
SPLITS, LOADS_ONCE = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Variables in which accelerate launch asks for FSDP, and asks transformers to give weights to the first process alone; here each reads them."""
ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def launched() -> Processes:
    """What the launcher says of the processes that it started; `ALONE` without one."""
    count = _number(COUNT)
    return Processes(_number(RANK) or 0, count) if count is not None and count > 1 else ALONE


@contextmanager
def joined() -> Iterator[Processes]:
    """Within it this process trains together with the others that were launched; where it does so already, or is alone, nothing changes.

    Tensors on the CPU, and all that is no gradient, go through gloo; those on a GPU, each process having its own, through NCCL.

    Raises:
        UserError: if the launcher asks for what cannot be done, or does not say how to find the others.
    """
    processes = launched()
    if together().several or not processes.several:
        _refuse_one_in_place_of_several()
        yield together()
        return
    if _number(RANK) is None or "MASTER_ADDR" not in os.environ:
        raise UserError(f"{processes.count} processes were started that do not say which is which; start them with torchrun or accelerate launch")
    if torch.cuda.is_available():
        torch.cuda.set_device((_number(LOCAL_RANK) or 0) % torch.cuda.device_count())
    os.environ[LOADS_ONCE] = "false"
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, rank=processes.rank, world_size=processes.count)
    with working(processes):
        for variable, engine in ENGINES.items():
            if _is_set(variable):
                raise UserError(f"accelerate launch asks for {engine}, which is not known here; leave it out, or split the network with --use_fsdp")
        yield processes
        processes.from_first(None)  # who leaves while the first still writes would take the others' connections along
    distributed.destroy_process_group()  # not after an error: it would wait for processes that have ended


def refuse_shared_device(device: torch.device) -> None:
    """Raises `UserError` if processes of this machine would share a GPU."""
    here = torch.cuda.device_count()
    if together().several and device.type == "cuda" and (_number(LOCAL_RANK) or 0) >= here:
        raise UserError(f"each process needs a GPU of its own, and there are {here}; start no more with --nproc_per_node, or set --device cpu")


def accelerate_defaults() -> dict[str, str | int]:
    """What `accelerate launch` and its configuration say of options of ours, by their names; nothing under another launcher."""
    said = {option: os.environ.get(variable, "no") for option, variable in OF_ACCELERATE.items()}
    given = {option: int(value) if value.isdecimal() else value for option, value in said.items() if value != "no"}
    return given | ({"shard": True} if _is_set(SPLITS) else {})


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")


def _number(variables: tuple[str, ...]) -> int | None:
    return next((int(value) for variable in variables if (value := os.environ.get(variable, "")).isdecimal()), None)


def _refuse_one_in_place_of_several() -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, and says so nowhere but in a variable."""
    if OF_ACCELERATE["precision"] in os.environ and "MASTER_ADDR" in os.environ and _number(COUNT) is None:
        advice = "add --multi_gpu, which serves processors too, or start it with torchrun --nproc_per_node"
        raise UserError(f"accelerate launch was asked for several processes and started one, as it does on a processor; {advice}")


def leave(code: int) -> NoReturn:
    """Ends the process. One of several goes without the end of the interpreter, in which threads of PyTorch abort it now and then."""
    if launched().several:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
