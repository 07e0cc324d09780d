"""Data made to do harm: archives that are cut, altered, or promise terabytes are refused in one line, and not read as other data."""

import gzip
import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rl_skip.core.errors import UserError
from rl_skip.tasks import load_task
from rl_skip.tasks.image_arrays import npz_parts
from rl_skip.tasks.images import images
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.recordings import read_recordings

WORDS = Path(__file__).parents[2] / "data" / "recordings" / "words"
LIMIT = 2**19
"""KiB that a refusal may take: half a gigabyte."""


def refused(call: Callable[..., object], *arguments: object) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as told:
        call(*arguments)
    assert "\n" not in str(told.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT
    return str(told.value)


# --------------------------------------------------------------------------------------------------------------- archives


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    with tarfile.open(tmp_path / "whole.tar", "w") as file:
        file.add(WORDS, ".")
    return (tmp_path / "whole.tar").read_bytes()


def headers(content: bytes) -> list[int]:
    """Where the members of a tar begin."""
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        return [member.offset for member in file]


def test_a_tar_that_is_cut_between_two_members_is_refused(tmp_path: Path, tar: bytes) -> None:
    assert read_recordings(tmp_path / "whole.tar")
    for place in headers(tar)[4:]:
        (tmp_path / "cut.tar").write_bytes(tar[:place])
        assert "cut short" in refused(read_recordings, tmp_path / "cut.tar")


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_header_hides_no_members(tmp_path: Path, tar: bytes, packed: bool) -> None:
    damaged = bytearray(tar)
    damaged[headers(tar)[6] + 150] ^= 1  # in the header's checksum
    (tmp_path / "a.tar").write_bytes(gzip.compress(damaged) if packed else damaged)
    assert "is damaged, or another tar" in refused(read_recordings, tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(tar + tar)
    assert "is damaged, or another tar" in refused(read_recordings, tmp_path / "a.tar")


def test_every_flipped_bit_of_a_packed_tar_is_refused(tmp_path: Path, tar: bytes) -> None:
    packed = gzip.compress(tar, mtime=0)
    for place in range(10, len(packed), len(packed) // 30):
        altered = bytearray(packed)
        altered[place] ^= 4
        (tmp_path / "a.tar.gz").write_bytes(altered)
        assert "cannot be read" in refused(read_recordings, tmp_path / "a.tar.gz")
    for end in (1, 4, 8, 100):
        (tmp_path / "a.tar.gz").write_bytes(packed[:-end])
        assert "cannot be read" in refused(read_recordings, tmp_path / "a.tar.gz")


def _member(name: str, size: int, **pax: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.pax_headers = size, pax
    return member.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        _member("yes/0.wav", 10 * 2**40),
        _member("yes/0.wav", 512, **{"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(10 * 2**40)}),
        struct.pack("100s8s8s8s12s12s8sc", b"x", b"644", b"0", b"0", b"77777777777", b"0", b" " * 8, b"x"),
    ],
    ids=["ten terabytes", "holes", "a header of 8 gigabytes"],
)
def test_members_that_promise_what_is_not_there(tmp_path: Path, content: bytes) -> None:
    content = content.ljust(512, b"\0")
    total = sum(content[:148]) + sum(content[156:512]) + 8 * 32
    content = content[:148] + f"{total:06o}\0 ".encode() + content[156:]
    for name, packed in (("a.tar", content + bytes(10_240)), ("a.tar.gz", gzip.compress(content + bytes(10_240)))):
        (tmp_path / name).write_bytes(packed)
        assert "cannot be read" in refused(read_recordings, tmp_path / name)


def test_links_of_a_tar_that_lead_out_of_it_or_round_are_refused(tmp_path: Path) -> None:
    for target in ("/etc/hostname", "../../../etc/hostname", "0.wav"):
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            member = tarfile.TarInfo("yes/0.wav")
            member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member)
        assert "cannot be read" in refused(read_recordings, tmp_path / "a.tar")


def test_a_recording_of_nothing_but_empty_parts(tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    content = b"WAVE" + b"junk\0\0\0\0" * 2**20
    (tmp_path / "yes" / "0.wav").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    assert "it has more than 1000 parts" in refused(read_recordings, tmp_path)


# ----------------------------------------------------------------------------------------------------------------- arrays


def npy(shape: tuple[int, ...], content: bytes, descr: str = "|u1") -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    ("shape", "content", "descr", "said"),
    [
        ((2**40, 1, 1), b"abc", "|u1", "promises 1,099,511,627,776"),
        ((3, 2, 1), b"abc", "|u1", "3 bytes where its header promises 6"),
        ((1,), b"abc", "<U400000000", "promises 1,600,000,000"),
        ((1,), b"abc", "|O", "allow_pickle=False"),
    ],
)
def test_an_npz_whose_headers_lie(tmp_path: Path, shape: tuple[int, ...], content: bytes, descr: str, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", npy(shape, content, descr))
        file.writestr("y.npy", npy((3,), b"\0\1\2"))
    assert said in refused(npz_parts, tmp_path / "a.npz")


def test_an_npz_of_zeros_without_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("x.npy", "w") as member:
        member.write(npy((300, 2**10, 2**10), b""))
        for _ in range(300):
            member.write(bytes(2**20))
    assert "its size allows" in refused(npz_parts, tmp_path / "a.npz")


def test_an_altered_npz_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.integers(0, 255, (30, 4, 4), dtype="uint8"), y=np.arange(30) % 2)
    content = (tmp_path / "a.npz").read_bytes()
    assert len(npz_parts(tmp_path / "a.npz")[0]["train"].labels) == 30
    place = content.index(b"x.npy") + 200  # among the pixels
    (tmp_path / "a.npz").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert "cannot be read" in refused(npz_parts, tmp_path / "a.npz")


# --------------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_that_says_it_is_60000_wide(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    for side in (9_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
        assert "cat/0.png cannot be read" in refused(images, tmp_path)


# -------------------------------------------------------------------------------------------------------------- the place


@pytest.mark.parametrize("task", ["text", "images", "speech", "language"])
@pytest.mark.parametrize("name", ["pipe.csv", "pipe.npz", "pipe"])
def test_data_that_are_a_pipe_are_refused_without_waiting(tmp_path: Path, task: str, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert refused(load_task, task, str(tmp_path / name))
    assert refused(load_task, task, "/dev/zero")


def test_a_file_that_is_named_lies_in_the_folder_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "out.csv").write_text("text,label\na,x\n")
    for name in ("../out.csv", str(tmp_path / "out.csv")):
        options = TaskOptions(train_file=name)
        assert "leads out of" in refused(load_task, "text", str(tmp_path / "data"), options)
