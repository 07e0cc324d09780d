"""What was written is known to be as it was: one bit that changed, a file that went or came, a seal of another kind."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from rl_skip.core.errors import UserError
from rl_skip.core.seal import SEAL, check_sealed, require_seal, seal

FILES = {"one.json": b"{}\n", "two.safetensors": bytes(range(256)), "deep/three.txt": b"x" * 100}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    seal(tmp_path)
    return tmp_path


def refused(folder: Path, *names: str) -> str:
    with pytest.raises(UserError) as told:
        check_sealed(folder, *names, whole=not names)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_no_bit_of_any_file_changes_unnoticed_the_seal_s_neither(folder: Path) -> None:
    check_sealed(folder, whole=True)
    draw = random.Random(0)
    for name in (*FILES, SEAL):
        whole = (folder / name).read_bytes()
        for bit in draw.sample(range(8 * len(whole)), k=min(8 * len(whole), 300)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(flipped)
            assert str(folder) in refused(folder)
        (folder / name).write_bytes(whole)
    check_sealed(folder, whole=True)


def test_files_that_went_or_came_are_named(folder: Path) -> None:
    (folder / "new.json").touch()
    check_sealed(folder, whole=True)  # what nobody reads may lie there
    assert f"{folder / 'new.json'} was added" in refused(folder, "new.json")
    check_sealed(folder, "nowhere.json")
    (folder / "one.json").unlink()
    assert f"{folder / 'one.json'} is missing" in refused(folder)
    check_sealed(folder, "two.safetensors")


@pytest.mark.parametrize("place", ["/etc/hostname", "../other", "deep/../../other"])
def test_no_line_of_a_seal_leads_out_of_its_folder(folder: Path, place: str) -> None:
    (folder / SEAL).write_text((folder / SEAL).read_text() + f"{'0' * 64}  {place}\n")
    assert "is no list of digests" in refused(folder)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sha256sum_reads_a_seal_and_what_is_advised_makes_one(folder: Path) -> None:
    assert subprocess.run(["sha256sum", "--check", "--strict", SEAL], cwd=folder, capture_output=True).returncode == 0
    (folder / SEAL).unlink()
    with pytest.raises(UserError, match="has no SHA256SUMS") as told:
        require_seal(folder)
    assert refused(folder) == str(told.value)
    subprocess.run(str(told.value).partition("to trust it as it is: ")[2], shell=True, check=True)
    assert len((folder / SEAL).read_text().splitlines()) == len(FILES)
    check_sealed(folder, whole=True)


def test_what_is_named_and_never_ends_or_is_larger_than_anything_written_is_refused(folder: Path) -> None:
    (folder / "one.json").unlink()
    os.mkfifo(folder / "one.json")
    assert f"{folder / 'one.json'} is missing" in refused(folder)
    (folder / "one.json").unlink()
    with (folder / "one.json").open("wb") as file:
        file.truncate(10 * 2**40)
    assert "10,995,116,277,760 bytes, and at most" in refused(folder)
    with (folder / SEAL).open("wb") as file:
        file.truncate(10 * 2**40)
    assert f"{SEAL} has 10,995,116,277,760 bytes" in refused(folder)
