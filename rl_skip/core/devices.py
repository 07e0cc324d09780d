"""Which device to run on."""

import torch
from torch import Tensor

from rl_skip.core.errors import UserError

__all__ = ["apart", "multiplies_bfloat16", "pick_device", "uploaded"]


def pick_device(wanted: str | torch.device) -> torch.device:
    """The named device, if it is there; "auto" takes cuda, then mps, then cpu.

    Raises:
        UserError: if it is not there, or there is no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    try:
        device = torch.device(wanted)
        if not present.get(device.type, True):
            raise UserError(f"there is no {device.type} device here; set --device auto or cpu, or device=")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the device {wanted!s} cannot be used ({str(error).splitlines()[0]}); set --device, or device=") from None
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 itself, and so faster than those of single precision."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))  # PyTorch has no public question for it
    return any(asked is not None and asked() for asked in known)


def apart(device: torch.device) -> bool:
    """Whether what lies on a device is not the host's to read without waiting."""
    return device.type != "cpu"


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on another device, without waiting for what runs there; the tensor itself where the device is the host."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
