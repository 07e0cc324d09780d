"""What `mutated.py` does to files: bytes are flipped, cut, doubled or overwritten; fields get other types and sizes, behind checksums that fit."""

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Mutation", "any_bytes", "in_arrays", "in_gzip", "in_json", "in_picture", "in_state", "in_table", "in_tensors", "in_wave"]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, 1e-320, 2**31, 2**63, 10**30, float("nan"), float("inf"), -float("inf"),
    "", "text", "\ud800", "../../etc/passwd", "a" * 5000, [], {}, [[]], [1, 2], {"": {}}, [None] * 100, "file.py:name",
)  # fmt: skip
"""That a field may be given."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
WAYS = ("bit", "bits", "cut", "cut a little", "doubled", "part doubled", "zeros", "swapped", "inserted", "number", "header", "empty")
HEADER = 64
"""Bytes at the beginning of a file, which hold its sizes."""


class Mutation(NamedTuple):
    """A file that is no longer what it was."""

    name: str
    content: bytes
    checked: bool
    """Whether a checksum inside the file was made right again, so that it may be taken for another file."""


Mutate = Callable[[bytes, random.Random], Mutation]


def any_bytes(content: bytes, chance: random.Random) -> Mutation:
    """A change of any file, whatever it holds."""
    name = chance.choice(WAYS)
    place, size = chance.randrange(len(content)), chance.choice((1, 2, 4, 8, 16, 200))
    there = content[place : place + size]
    new = bytearray(content)
    if name in ("bit", "bits"):
        for _ in range(1 if name == "bit" else 8):
            new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
    elif name == "cut":
        del new[place:]
    elif name == "cut a little":
        del new[-chance.randrange(1, 9) :]
    elif name == "doubled":
        new += content
    elif name == "part doubled":
        new[place:place] = there
    elif name == "zeros":
        new[place : place + size] = bytes(len(there))
    elif name == "swapped":
        other = chance.randrange(len(content))
        new[place], new[other] = new[other], new[place]
    elif name == "inserted":
        new[place:place] = chance.randbytes(size)
    elif name in ("number", "header"):
        start = place if name == "number" else chance.randrange(min(HEADER, len(content)))
        size = chance.choice((1, 2, 4, 8))
        new[start : start + size] = (chance.choice(EXTREMES) % 256**size).to_bytes(size, chance.choice(("little", "big")))
    else:
        new.clear()
    return Mutation(name, bytes(new), False)


def _places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all fields of nested objects and lists."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path for key in keys for path in ((*prefix, key), *_places(value[key], (*prefix, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _field(value: Any, chance: random.Random) -> str:
    """Changes one field of nested objects; returns how."""
    places = _places(value)
    path = chance.choice(places)
    holder, key = _at(value, path[:-1]), path[-1]
    how = chance.choice(("value", "value", "value", "missing", "swapped", "renamed", "doubled", "deep"))
    if how == "missing":
        del holder[key]
    elif how == "swapped":
        other = chance.choice(places)
        there, mine = _at(value, other), holder[key]
        if path[: len(other)] != other and other[: len(path)] != path:
            holder[key], _at(value, other[:-1])[other[-1]] = there, mine
    elif how == "renamed" and isinstance(holder, dict):
        holder[f"{key}_"] = holder.pop(key)
    elif how == "doubled" and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif how == "deep":
        nested: Any = []
        for _ in range(chance.choice((70, 400))):
            nested = [nested]
        holder[key] = nested
    else:
        holder[key] = chance.choice(VALUES)
    return f"field {how}"


def in_json(content: bytes, chance: random.Random) -> Mutation:
    """A field of a JSON file, or of one of its lines."""
    lines = content.splitlines(keepends=True)
    single = content.startswith(b"{\n")
    number = 0 if single else chance.randrange(len(lines))
    value = json.loads(content if single else lines[number])
    how = _field(value, chance)
    new = (json.dumps(value, indent=2 if single else None) + "\n").encode()
    return Mutation(how, new if single else b"".join([*lines[:number], new, *lines[number + 1 :]]), True)


def in_tensors(content: bytes, chance: random.Random) -> Mutation:
    """A field of the header of a safetensors file, or numbers that are not finite."""
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    if chance.random() < 0.3:
        how, value = "not finite", chance.choice((float("nan"), float("inf"), 1e38))
        place = 4 * chance.randrange(max(len(values) // 4, 1))
        values[place : place + 4] = struct.pack("<f", value)
    elif chance.random() < 0.3:
        tensor = header[chance.choice([name for name in header if name != "__metadata__"])]
        how, tensor["dtype"] = "type", chance.choice(("F16", "BF16", "F64", "I64", "BOOL", "U8", "F8_E4M3", "none"))
    else:
        how = _field(header, chance)
    packed = json.dumps(header).encode()
    return Mutation(how, len(packed).to_bytes(8, "little") + packed + values, True)


def in_state(content: bytes, chance: random.Random) -> Mutation:
    """A part of the state in a checkpoint: another type, another shape, numbers that are not finite."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    path = chance.choice(_places(state))
    found = _at(state, path)
    if isinstance(found, torch.Tensor) and chance.random() < 0.6:
        how = chance.choice(("not finite", "shape", "type", "empty"))
        new = found.clone()
        if how == "not finite" and new.is_floating_point() and new.numel():
            new.view(-1)[chance.randrange(new.numel())] = chance.choice((float("nan"), float("inf")))
        elif how == "type":
            new = new.to(chance.choice((torch.float64, torch.int64, torch.bool, torch.uint8)))
        else:
            new = new[:0] if how == "empty" and new.dim() else torch.cat([new.reshape(-1), new.reshape(-1)])
        _at(state, path[:-1])[path[-1]] = new
    else:
        how = _field(state, chance)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return Mutation(how, buffer.getvalue(), True)


def in_gzip(content: bytes, chance: random.Random) -> Mutation:
    """Bytes of what is packed, with a checksum that fits them."""
    inside = any_bytes(gzip.decompress(content), chance)
    return Mutation(f"inside: {inside.name}", gzip.compress(inside.content, mtime=0), True)


def in_arrays(content: bytes, chance: random.Random) -> Mutation:
    """An array of an npz file: other types, axes and numbers; or bytes of it, with a checksum that fits them."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = chance.choice(list(arrays))
    buffer = io.BytesIO()
    how = chance.choice(("type", "not finite", "axes", "objects", "missing", "rows", "bytes"))
    if how == "bytes":
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                inside = old.read(member)
                new.writestr(member, any_bytes(inside, chance).content if member == f"{name}.npy" else inside)
        return Mutation(how, buffer.getvalue(), True)
    array = arrays[name]
    if how == "type":
        arrays[name] = array.astype(chance.choice(("f2", "f8", "i8", "c8", "?", "S3", "U3")))
    elif how == "not finite":
        arrays[name] = np.where(array == array.flat[0], np.nan, array.astype("f4"))
    elif how == "axes":
        arrays[name] = chance.choice((array[None], array.reshape(-1), array[..., None, None], np.array(3)))
    elif how == "objects":
        arrays[name] = np.array([{"a": 1}] * len(array), dtype=object)
    elif how == "missing":
        del arrays[name]
    else:
        arrays[name] = chance.choice((array[:0], array[:1], array[:-1], np.repeat(array, 2, axis=0)))
    np.savez_compressed(buffer, allow_pickle=True, **arrays)
    return Mutation(how, buffer.getvalue(), True)


def in_picture(content: bytes, chance: random.Random) -> Mutation:
    """A number in the header of a PNG, with a checksum that fits it."""
    header = bytearray(content[12:29])
    size = chance.choice((1, 4))
    place = chance.choice((4, 8)) if size == 4 else chance.randrange(12, 17)
    header[place : place + size] = (chance.choice((0, 1, 3, 255, 60_000, 2**31 - 1, 2**32 - 1)) % 256**size).to_bytes(size, "big")
    return Mutation("size", content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:], True)


def in_wave(content: bytes, chance: random.Random) -> Mutation:
    """A number in the header of a WAV file."""
    size = chance.choice((2, 4))
    place = chance.choice((4, 16, 20, 22, 24, 28, 32, 34, 40))
    number = (chance.choice((*EXTREMES, 3, 24, 96_000)) % 256**size).to_bytes(size, "little")
    return Mutation("header", content[:place] + number + content[place + size :], True)


def in_table(content: bytes, chance: random.Random) -> Mutation:
    """A field of a table: empty, very long, quoted, not UTF-8; or columns that are missing or swapped."""
    rows = [line.split(b"\t") for line in content.splitlines()]
    row = chance.choice(rows)
    how = chance.choice(("value", "value", "missing", "added", "swapped", "heading"))
    if how == "value":
        odd = (b"", b" ", b'"', b"\0", b"\xff\xfe", b"a" * 200_000, b"nan", b"1e400", "\u2028".encode(), b"\r", b"\t" * 50, "é".encode("latin-1"))
        row[chance.randrange(len(row))] = chance.choice(odd)
    elif how == "missing":
        row.pop()
    elif how == "added":
        row.append(b"more")
    elif how == "swapped":
        row.reverse()
    else:
        rows[0][chance.randrange(len(rows[0]))] = chance.choice((b"", b"text", b"label", b"\xff", b"LABEL"))
    return Mutation(how, b"".join(b"\t".join(row) + b"\n" for row in rows), True)
