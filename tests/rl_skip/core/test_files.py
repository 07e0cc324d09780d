"""Files and folders that are there whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_replace, atomic_write, refuse_links, remove_unfinished

TOP = Path(__file__).resolve().parents[3]


def test_what_is_written_is_there_as_bytes_or_as_text(tmp_path: Path) -> None:
    for content in (b"\x00\xff", "naïve\n", b"shorter"):
        atomic_write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    atomic_write(file, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="file cannot be written .No space left on device.") as told:
        atomic_write(file, b"new and longer")
    assert file.read_bytes() == b"old" and "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == [file]  # what was written of the new one takes no room


def test_two_files_of_a_folder_can_be_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, others = os.fsync, [tmp_path / "other"]

    def write_another(handle: int) -> None:
        if others:
            atomic_write(others.pop(), b"of the other")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", write_another)
    atomic_write(tmp_path / "one", b"of the one")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"one": b"of the one", "other": b"of the other"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    atomic_replace(folder, lambda new: (new / "old").touch())
    with pytest.raises(UserError, match="exists and is left as it is"):
        atomic_replace(folder, lambda new: pytest.fail("is not asked"))

    def breaks(new: Path) -> None:
        (new / "half").touch()
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        atomic_replace(folder, breaks, overwrite=True)
    assert [file.name for file in folder.iterdir()] == ["old"]
    atomic_replace(folder, lambda new: (new / "new").touch(), overwrite=True)
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*")] == ["above", "above/folder", "above/folder/new"]


def test_links_in_what_is_copied_are_refused(tmp_path: Path) -> None:
    (tmp_path / "policy" / "deep").mkdir(parents=True)
    (tmp_path / "policy" / "deep" / "file").write_text("mine")
    refuse_links(tmp_path / "policy")
    for link, target in ((tmp_path / "linked", tmp_path / "policy"), (tmp_path / "policy" / "deep" / "key", "/etc/hostname")):
        link.symlink_to(target)
        with pytest.raises(UserError, match=f"{link} is a link"):
            refuse_links(link if link.name == "linked" else tmp_path / "policy")


KILLED = """
import os, sys
from pathlib import Path
from rl_skip.core.files import atomic_replace, atomic_write
here = Path(sys.argv[1])
if os.fork():
    os.wait()
    atomic_replace(here / "policy", lambda new: os.kill(os.getpid(), 9))
os.fsync = lambda handle: os.kill(os.getpid(), 9)
atomic_write(here / "config.json", "half")
"""


def test_what_killed_processes_leave_names_them_and_is_removed_alone(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("config.json", ".hidden", "file.tmp", ".file.tmp", "policy")]
    for file in kept:
        file.touch()
    kept[-1].unlink()
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=TOP)
    assert process.wait() == -9
    left = {file.name for file in tmp_path.iterdir() if file not in kept}
    assert len(left) == 2 and any(f"-{process.pid}-" in name for name in left), left
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept[:-1])
