"""WAV files: PCM of 8 to 32 bits and floating point, with any header that says so, any rate and any number of channels."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RATES", "Recording", "read_wave"]

RATES = range(1000, 768_001)
"""Samples a second that a header may name."""
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
NAMED = {2: "ADPCM", 6: "A-law", 7: "µ-law", 17: "ADPCM", 85: "MP3"}
MOST_CHUNKS = 1000
"""In a file: programs write a dozen, and a file of empty ones would take minutes."""
UNKNOWN_LENGTH = 0xFFFFFFFF
"""What programs write that do not know the length yet when they begin."""


class Recording(NamedTuple):
    """One recording, its channels averaged."""

    samples: Tensor
    """(S,), int16 where the file has 8 or 16 bits and one channel, else float32; full scale is 2^15 of the one, 1 of the other."""
    rate: int
    """Samples a second."""
    channels: int
    """Of the file."""
    digest: int
    """Equal where files hold the same samples in the same form."""


def read_wave(content: bytes) -> Recording:
    """The recording in a WAV file (Microsoft and IBM 1991, "Multimedia Programming Interface"; WAVE_FORMAT_EXTENSIBLE, Microsoft 2001).

    Raises:
        ValueError: if it is no such file, is cut short or holds no samples.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("it is no RIFF WAVE file")
    chunks = {name: (size, chunk) for name, size, chunk in _chunks(content)}
    if b"data" not in chunks or len(form := bytes(chunks.get(b"fmt ", (0, b""))[1])) < 16:
        raise ValueError("it has no format or no data in it")
    size, data = chunks[b"data"]
    kind, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == EXTENSIBLE and len(form) >= 26:
        kind = int.from_bytes(form[24:26], "little")
    width = bits // 8
    if (kind, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise ValueError(f"its samples are {NAMED.get(kind, f'of format {kind}')} with {bits} bits, which is not read; save it as 16-bit PCM")
    if not channels or frame != channels * width or rate not in RATES:
        raise ValueError(f"its header names {channels} channels, {rate} Hz and {frame} bytes a sample of {bits} bits")
    promised = (len(data) if size == UNKNOWN_LENGTH else size) // frame
    if len(data) < promised * frame:
        raise ValueError(f"it is cut short, with {len(data) // frame} of {promised} samples")
    if not promised:
        raise ValueError("it holds no samples")
    values = bytes(data[: promised * frame])
    samples = _decoded(bytearray(values), kind, width)
    if not samples.isfinite().all():
        raise ValueError("it holds values that are not finite")
    if channels > 1:
        samples = (samples / 2**15 if samples.dtype == torch.int16 else samples).view(-1, channels).mean(dim=1)
    return Recording(samples, rate, channels, hash((kind, channels, rate, bits, values)))


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, memoryview]]:
    """Name, promised size and what there is of each chunk; chunks begin at even places."""
    view, place = memoryview(content), 12
    for _ in range(MOST_CHUNKS):
        if place + 8 > len(content):
            return
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        yield content[place : place + 4], size, view[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    raise ValueError(f"it has more than {MOST_CHUNKS} parts")


def _decoded(data: bytearray, kind: int, width: int) -> Tensor:
    """The values in order: int16 of 8 and 16 bits, else float32. Floating-point values beyond 1 are brought within it, by one factor."""
    if kind == FLOAT:
        values = torch.frombuffer(data, dtype=torch.float32 if width == 4 else torch.float64)
        return (values / values.abs().max().clamp(min=1.0)).float()
    if width == 1:
        return (torch.frombuffer(data, dtype=torch.uint8).to(torch.int16) - 128) * 2**8
    if width == 2:
        return torch.frombuffer(data, dtype=torch.int16)
    if width == 3:
        parts = torch.frombuffer(data, dtype=torch.uint8).view(-1, 3).int()
        values = (parts[:, 2] << 24) | (parts[:, 1] << 16) | (parts[:, 0] << 8)  # the sign is that of the highest byte
    else:
        values = torch.frombuffer(data, dtype=torch.int32)
    return (values.double() / 2**31).float()
