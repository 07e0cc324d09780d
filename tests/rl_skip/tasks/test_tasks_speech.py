"""The task speech: recordings that the tests make, and the Free Spoken Digit Dataset where it is at hand."""

import io
import math
import os
import struct
import tarfile
import wave
from pathlib import Path

import pytest
import torch

from rl_skip.core.errors import UserError
from rl_skip.tasks import load_task
from rl_skip.tasks.speech import FRAMES, HOP, MELS, RATE, WINDOW, log_mel, mel_filters, speech


def tone(hertz: float, seconds: float = 0.3, loudness: float = 0.5) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return (loudness * 32767 * torch.sin(2 * math.pi * hertz * time)).round().to(torch.int16)


def wav(samples: torch.Tensor, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples.tolist()))
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def two_words(takes: int = 15) -> dict[str, bytes]:
    """`takes` recordings of "low" and of "high", each a tone of its own pitch."""
    return {f"{label}_ann_{take}.wav": wav(tone(base + 10 * take)) for label, base in (("low", 400), ("high", 2000)) for take in range(takes)}


def loudest_band(hertz: float) -> int:
    """The mel band whose centre lies nearest to a frequency, in mel, from the textbook's formula with log10."""
    centre = 2595 * math.log10(1 + hertz / 700)
    highest = 2595 * math.log10(1 + 4000 / 700)
    return round(centre / (highest / 41)) - 1


@pytest.mark.parametrize("hertz", [150, 440, 1000, 1800, 3000, 3800])
def test_the_energy_of_a_pure_tone_is_in_the_band_of_its_frequency(hertz: float) -> None:
    frames, mask = log_mel([tone(hertz)])
    bands = frames[0, mask[0]].argmax(dim=1)
    assert (bands - loudest_band(hertz)).abs().max() <= (1 if hertz < 500 else 0)


def test_frames_equal_a_slow_discrete_fourier_transform() -> None:
    samples = torch.randint(-8000, 8000, (1500,), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    frames, mask = log_mel([samples])
    count = 1 + (1500 - WINDOW) // HOP
    assert mask.sum() == count
    n = torch.arange(WINDOW, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * n / WINDOW)
    turns = torch.arange(WINDOW // 2 + 1)[:, None] * n / WINDOW
    power = []
    for frame in range(count):
        windowed = samples[frame * HOP : frame * HOP + WINDOW].double() * hann
        power.append((turns.mul(2 * math.pi).cos() @ windowed) ** 2 + (turns.mul(2 * math.pi).sin() @ windowed) ** 2)
    level = (torch.stack(power) @ mel_filters().double().T).log()
    expected = (level - level.mean()) / level.std(correction=0)
    torch.testing.assert_close(frames[0, :count].double(), expected, rtol=0, atol=1e-3)


def test_filters_cover_every_band_and_peak_where_they_should() -> None:
    filters = mel_filters()
    assert filters.shape == (MELS, WINDOW // 2 + 1)
    assert (filters >= 0).all() and (filters <= 1).all()
    assert (filters.sum(dim=1) > 0.5).all()
    inner = filters[:, 2:122].sum(dim=0)  # triangles that overlap by half add up to one between the first peak and the last, at 3,793 Hz
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=0, atol=1e-4)


def test_loudness_does_not_matter() -> None:
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 1000
    frames, _ = log_mel([noise.to(torch.int16), noise.to(torch.int16) * 5])
    torch.testing.assert_close(frames[0], frames[1], rtol=0, atol=1e-4)


def test_each_recording_is_normalised_over_its_own_frames_and_zero_past_its_end() -> None:
    frames, mask = log_mel([tone(500, seconds) for seconds in (0.02, 0.2, 0.7, 1.0)])
    lengths = [160, 1600, 5600, 8000]
    assert mask.sum(dim=1).tolist() == [max(1, 1 + (length - WINDOW) // HOP) for length in lengths]
    assert frames.shape == (4, FRAMES, MELS)
    assert (frames[~mask] == 0).all()
    for row in range(4):
        real = frames[row, mask[row]]
        assert abs(real.mean()) < 1e-4 and abs(real.std(correction=0) - 1) < 1e-3


def test_the_features_of_a_recording_do_not_depend_on_its_neighbours() -> None:
    recordings = [tone(300 + 7 * i, 0.1 + 0.003 * i) for i in range(300)]  # more than one block of spectra
    together, _ = log_mel(recordings)
    for row in (0, 255, 256, 299):
        torch.testing.assert_close(log_mel([recordings[row]])[0][0], together[row], rtol=0, atol=1e-4)


def test_a_long_recording_is_cropped_to_its_loudest_second() -> None:
    quiet, loud = tone(300, 1.5, 0.01), tone(2500, 0.9, 0.9)
    frames, mask = log_mel([torch.cat([quiet, loud, quiet])])
    assert mask.all()
    assert (frames[0].argmax(dim=1) == loudest_band(2500)).sum() >= 88  # 0.9 s hold 88 whole frames


def test_silence_gives_finite_frames() -> None:
    frames, _ = log_mel([torch.zeros(2000, dtype=torch.int16)])
    assert frames.isfinite().all()


def test_takes_make_the_official_split(tmp_path: Path) -> None:
    task = speech(write(tmp_path, two_words(15)))
    assert task.classes == ("high", "low")
    assert {split: len(task.load(split)) for split in ("train", "validation", "test")} == {"train": 10, "validation": 10, "test": 10}
    for split, takes in (("test", range(5)), ("validation", range(5, 10)), ("train", range(10, 15))):
        examples = task.load(split)
        low = log_mel([tone(400 + 10 * take) for take in takes])[0]
        assert isinstance(examples.inputs, dict)
        found = examples.inputs["frames"][examples.labels == 1]
        assert all((found - wanted).abs().flatten(1).amax(dim=1).min() < 1e-4 for wanted in low)


def test_without_enough_takes_the_split_is_by_class(tmp_path: Path) -> None:
    task = speech(write(tmp_path, two_words(5)))
    assert [task.load(split).labels.bincount().tolist() for split in ("train", "validation", "test")] == [[3, 3], [1, 1], [1, 1]]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_read_as_the_folder_is(tmp_path: Path, mode: str) -> None:
    files = two_words()
    folder, tar = write(tmp_path / "folder", files), pack(tmp_path / "packed", {f"recordings/{name}": files[name] for name in reversed(files)}, mode)
    for split in ("train", "validation", "test"):
        first, second = speech(folder).load(split), speech(tar).load(split)
        assert isinstance(first.inputs, dict) and isinstance(second.inputs, dict)
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.inputs["frames"], second.inputs["frames"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_per_label(tmp_path: Path, packed: bool) -> None:
    files = {f"words/{label}/{i:x}_nohash_0.wav": wav(tone(pitch + i)) for label, pitch in (("yes", 500), ("no", 1500)) for i in range(10)}
    files |= {"words/README.md": b"words", "words/yes/._0_nohash_0.wav": b"left by another system", "words/no/noise.txt": b""}
    task = speech(pack(tmp_path / "words.tar.gz", files, "w:gz") if packed else write(tmp_path, files))
    assert task.classes == ("no", "yes")
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        examples = task.load(split)
        assert examples.labels.bincount().tolist() == [count, count]
        assert isinstance(examples.inputs, dict)
        bands = examples.inputs["frames"][:, 0].argmax(dim=1)
        assert (abs(bands - torch.where(examples.labels == 1, loudest_band(500), loudest_band(1500))) <= 1).all()


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    files = {f"{label}_ann_{take}.wav": wav(tone(500 + take)) for label in (10, 9, 2) for take in range(4)}
    assert speech(write(tmp_path, files)).classes == ("2", "9", "10")


def test_the_embedding_fits(tmp_path: Path) -> None:
    task = speech(write(tmp_path, two_words()))
    examples = task.load("train")
    hidden, mask = task.embedding.build(16)(examples.inputs)  # type: ignore[union-attr]
    assert hidden.shape == (10, task.tokens, 16) and mask.shape == (10, task.tokens)
    assert mask.sum(dim=1).tolist() == [6] * 10  # 0.3 s are 27 frames, 6 tokens of 5


GOOD = two_words()
ONE = "low_ann_3.wav"
BAD = {
    "cut short": ({ONE: GOOD[ONE][:-700]}, "cut short, with 2050 of 2400 samples"),
    "cut in the header": ({ONE: GOOD[ONE][:30]}, "cannot be read"),
    "nothing in it": ({ONE: b""}, "cannot be read"),
    "no wav at all": ({ONE: b"This is text." * 50}, "cannot be read"),
    "a rate that no recorder has": ({ONE: wav(tone(400), rate=2**30)}, "1073741824 Hz"),
    "no samples": ({ONE: wav(tone(400, 0))}, "no samples"),
    "a name without a label": ({"hello.wav": GOOD[ONE]}, "hello.wav"),
    "a file outside the folders": ({"loud/low_ann_3.wav": GOOD[ONE]}, "is in no class's folder"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_recording_is_refused_in_one_line(tmp_path: Path, case: str, packed: bool) -> None:
    files, message = BAD[case]
    files = GOOD | files
    path = pack(tmp_path / "bad.tar.gz", files, "w:gz") if packed else write(tmp_path, files)
    with pytest.raises(UserError, match="set --data") as caught:
        speech(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert next(name for name in BAD[case][0]).split("/")[-1] in str(caught.value) or case == "a file outside the folders"


def test_bad_places_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.tar.gz", GOOD, "w:gz").read_bytes()
    plain = pack(tmp_path / "plain.tar", GOOD, "w").read_bytes()
    places = {
        "missing": tmp_path / "missing",
        "empty folder": tmp_path / "empty",
        "empty file": write(tmp_path, {"empty.tar.gz": b""}) / "empty.tar.gz",
        "text": write(tmp_path, {"text.tar.gz": b"hello " * 1000}) / "text.tar.gz",
        "cut": write(tmp_path, {"cut.tar.gz": whole[: len(whole) // 2]}) / "cut.tar.gz",
        "cut plain": write(tmp_path, {"cut.tar": plain[: len(plain) // 2]}) / "cut.tar",
        "corrupt": write(tmp_path, {"corrupt.tar.gz": whole[:5000] + b"\0" * 500 + whole[5500:]}) / "corrupt.tar.gz",
        "other files": write(tmp_path / "other", {"notes.txt": b"hello"}),
        "other files in a tar": pack(tmp_path / "other.tar", {"notes.txt": b"hello"}, "w"),
        "one class": write(tmp_path / "one", {name: content for name, content in GOOD.items() if name.startswith("low")}),
        "too few": write(tmp_path / "few", two_words(1)),
    }
    places["empty folder"].mkdir()
    for case, place in places.items():
        with pytest.raises(UserError, match="set --data") as caught:
            load_task("speech", str(place))
        assert str(place) in str(caught.value) and "\n" not in str(caught.value), case


def test_any_damage_is_told_or_harmless(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    write(tmp_path, GOOD)
    for _ in range(200):
        content = bytearray(GOOD[ONE])
        for _ in range(3):
            content[int(torch.randint(44, (), generator=generator))] = int(torch.randint(256, (), generator=generator))
        try:
            speech(write(tmp_path, {ONE: bytes(content)}))
        except UserError as error:
            assert "\n" not in str(error)


def test_the_free_spoken_digit_dataset() -> None:
    path = Path(os.environ.get("RL_SKIP_DATA", "")) / "fsdd" / "recordings.tar.gz"
    if "RL_SKIP_DATA" not in os.environ or not path.is_file():
        pytest.skip("RL_SKIP_DATA names no folder with fsdd/recordings.tar.gz")
    task = load_task("speech", str(path))
    assert task.classes == tuple("0123456789")
    for split, count in (("train", 240), ("validation", 30), ("test", 30)):
        examples = task.load(split)
        assert examples.labels.bincount().tolist() == [count] * 10
        assert isinstance(examples.inputs, dict)
        assert examples.inputs["frames"].isfinite().all()
        assert (examples.inputs["mask"].sum(dim=1) >= 12).all()  # the shortest recording has 0.14 s
