"""Files made to hang, to fill the memory or to pass for whole ones: each is one line, in no time and next to no memory."""

import bz2
import gzip
import io
import json
import lzma
import os
import resource
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rl_skip.core.bounded import MOST_JSON, UNPACKED_ALWAYS, read_bytes, read_json, read_tensors, unpacked
from rl_skip.core.errors import UserError


def refused(call: object, *arguments: object) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as told:
        call(*arguments)  # type: ignore[operator]
    assert "\n" not in str(told.value) and "mend it" in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "in KiB"
    return str(told.value)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_bytes, read_json, read_tensors):
        assert "is a pipe and no file" in refused(read, tmp_path / "pipe", "mend it")
        assert "is a device and no file" in refused(read, Path("/dev/zero"), "mend it")
        assert "is a folder and no file" in refused(read, tmp_path, "mend it")
        assert "No such file" in refused(read, tmp_path / "gone", "mend it")


def test_a_file_of_holes_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10 * 2**40)
    assert "10,995,116,277,760 bytes, and at most" in refused(read_bytes, tmp_path / "large", "mend it")
    assert f"at most {MOST_JSON:,}" in refused(read_json, tmp_path / "large", "mend it")
    assert "a header of 0 bytes" in refused(read_tensors, tmp_path / "large", "mend it")


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_what_is_packed_is_read_whole_or_not_at_all(packer: object) -> None:
    content = os.urandom(5000) + b"word " * 5000
    packed = packer.compress(content)  # type: ignore[attr-defined]
    assert unpacked(packed) == content and unpacked(content) == content
    for cut in (10, len(packed) // 2, len(packed) - 1):
        with pytest.raises((EOFError, OSError, lzma.LZMAError)):
            unpacked(packed[:cut])
    altered = bytearray(packed)
    altered[len(packed) // 2] ^= 1
    with pytest.raises((EOFError, OSError, ValueError, lzma.LZMAError, gzip.zlib.error)):  # type: ignore[attr-defined]
        assert unpacked(bytes(altered)) == content


def test_zeros_without_end_are_read_no_further_than_their_packed_size_allows() -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match="its packed size allows"):
        unpacked(packed.getvalue())
    assert UNPACKED_ALWAYS < 300 * 2**20


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 100_000 + "]" * 100_000, "is not JSON"), ('{"a":' * 70 + "1" + "}" * 70, "more than 64 objects"), ("9" * 5000, "is not JSON")],
)
def test_json_of_absurd_depth_or_length(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert message in refused(read_json, tmp_path / "a.json", "mend it")
    (tmp_path / "a.json").write_text('{"a":' * 60 + "1" + "}" * 60)
    assert read_json(tmp_path / "a.json", "mend it")


def _header(tensors: object) -> bytes:
    content = json.dumps(tensors).encode()
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{" + bytes(99_000_100),
        _header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        _header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}),
        _header({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        _header({"a": {"dtype": "F8_NO", "shape": [1], "data_offsets": [0, 1]}}) + b"x",
        _header([]),
    ],
)
def test_headers_that_promise_what_is_not_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "is not a readable safetensors file" in refused(read_tensors, tmp_path / "a.safetensors", "mend it")


def test_tensors_that_are_whole_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors", "mend it")["a"], tensor)
