"""Which device to run on."""

import torch

from rl_skip.core.errors import UserError

__all__ = ["pick_device"]


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
