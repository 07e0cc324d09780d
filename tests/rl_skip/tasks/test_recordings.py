"""Recordings as people have them: those of tests/data/recordings, each read rightly and told of, or refused in one line with its name."""

import json
import math
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.recordings import read_recordings
from rl_skip.tasks.speech import speech
from rl_skip.tasks.waves import read_wave

DATA = Path(__file__).parents[2] / "data" / "recordings"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def words(folder: Path, *odd: str) -> Path:
    """A copy of the plain recordings with odd ones among those of "yes"."""
    shutil.copytree(DATA / "words", folder, dirs_exist_ok=True)
    for name in odd:
        shutil.copy(DATA / "odd" / name, folder / "yes")
    return folder


def tone(rate: int, seconds: float) -> torch.Tensor:
    """What the odd recordings hold: 1,000 Hz at half of full scale."""
    return (0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(round(seconds * rate)).double() / rate)).float()


@pytest.mark.parametrize(
    ("name", "rate", "scale", "atol"),
    [
        ("extensible", 8000, 1, 2**-15),
        ("bits8", 8000, 1, 2**-7),
        ("bits24", 8000, 1, 2**-23),
        ("bits32", 8000, 1, 2**-24),
        ("float32", 8000, 1, 1e-7),
        ("float64", 8000, 1, 1e-7),
        ("float_beyond_one", 8000, 2, 1e-7),
        ("stereo", 8000, 1, 2**-15),
        ("rate16000", 16000, 1, 2**-15),
        ("rate44100", 44100, 1, 2**-15),
        ("unknown_length", 8000, 1, 2**-15),
    ],
)
def test_every_form_of_wav_gives_its_samples(name: str, rate: int, scale: float, atol: float) -> None:
    samples, found, *_ = read_wave((DATA / "odd" / f"{name}.wav").read_bytes())
    samples = samples / 2**15 if samples.dtype == torch.int16 else samples
    assert found == rate
    torch.testing.assert_close(samples, scale * tone(rate, 0.05), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("stereo", "brought to one channel, the mean of several"),
        ("rate16000", "brought from 16000 Hz to 8000 Hz"),
        ("rate44100", "brought from 44100 Hz to 8000 Hz"),
        ("long", "cut to the loudest 1.02 s"),
        ("silent", "silent throughout"),
    ],
)
def test_what_is_changed_in_a_recording_is_told(tmp_path: Path, name: str, remark: str) -> None:
    assert speech(words(tmp_path, f"{name}.wav")).remarks == (f"1 of 11 recordings was {remark} (the first: yes/{name}.wav)",)


@pytest.mark.parametrize("name", ["extensible", "bits8", "bits24", "float32", "one_sample", "rate16000", "rate44100", "stereo", "silent"])
def test_frames_are_those_of_the_plain_recording(tmp_path: Path, name: str) -> None:
    """In bands that both rates hold; the tone itself is the loudest."""
    shutil.copytree(words(tmp_path / "train", f"{name}.wav"), tmp_path / "test")
    inputs = speech(tmp_path).load("test").inputs
    assert isinstance(inputs, dict) and inputs["frames"].isfinite().all()
    shutil.copy(DATA / "odd" / "unknown_length.wav", tmp_path / "test" / "yes" / f"{name}.wav")
    plain = speech(tmp_path).load("test").inputs
    assert isinstance(plain, dict)
    if name not in ("one_sample", "silent"):
        assert torch.equal(inputs["mask"], plain["mask"])
        assert torch.equal(inputs["frames"][:, 0].argmax(dim=1), plain["frames"][:, 0].argmax(dim=1))


REFUSED = {
    "alaw": "A-law with 8 bits, which is not read; save it as 16-bit PCM",
    "cut": "cut short, with 250 of 400 samples",
    "empty": "holds no samples",
    "mp3_inside": "no RIFF WAVE file",
    "not_a_number": "not finite",
    "text": "no RIFF WAVE file",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_recording_that_cannot_be_read_is_refused_in_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="set --data") as caught:
        speech(words(tmp_path, f"{name}.wav"))
    assert f"yes/{name}.wav in {tmp_path}" in str(caught.value) and REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_kinds_are_counted_and_a_class_that_gives_none_is_refused(tmp_path: Path) -> None:
    words(tmp_path, "song.mp3")
    (tmp_path / "validation_list.txt").write_text("yes/1.wav\n")
    assert speech(tmp_path).remarks == (f"passed over in {tmp_path}: 1 .mp3, 1 .txt, not read as recordings (the first: validation_list.txt)",)
    (tmp_path / "maybe").mkdir()
    shutil.copy(DATA / "odd" / "song.mp3", tmp_path / "maybe")
    with pytest.raises(UserError, match=r"maybe gives no recordings, it holds 1 \.mp3; take it out, or set --data"):
        speech(tmp_path)


def test_splits_in_folders_are_not_mixed(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        words(tmp_path / split, *(["stereo.wav"] if split == "test" else []))
    (tmp_path / "test" / "no" / "0.wav").unlink()
    task = speech(tmp_path)
    assert [task.load(split).labels.bincount().tolist() for split in SPLITS] == [[5, 5], [5, 5], [4, 6]]
    assert any(said.startswith("9 of 10 test recordings") for said in task.remarks)


def test_files_of_each_split_may_have_their_class_in_their_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for label in ("yes", "no"):
            for take in range(4):
                shutil.copy(DATA / "words" / label / f"{take}.wav", tmp_path / split / f"{label}_ann_{take}.wav")
    parts, _ = read_recordings(tmp_path)
    assert {split: sorted(part.labels) for split, part in parts.items()} == dict.fromkeys(("train", "test"), ["no"] * 4 + ["yes"] * 4)


def test_links_in_a_tar_are_read_and_its_empty_folders_are_classes(tmp_path: Path) -> None:
    folder = words(tmp_path / "folder")
    (folder / "no" / "5.wav").symlink_to("0.wav")
    (folder / "yes" / "5.wav").hardlink_to(folder / "yes" / "0.wav")
    with tarfile.open(tmp_path / "words.tar", "w") as tar:
        tar.add(folder, ".")
    parts, remarks = read_recordings(tmp_path / "words.tar")
    assert parts["train"].labels == ["no"] * 6 + ["yes"] * 6 and not remarks
    for first, last in ((0, 5), (6, 11)):
        assert torch.equal(parts["train"].recordings[first].samples, parts["train"].recordings[last].samples)
    (folder / "maybe").mkdir()
    with tarfile.open(tmp_path / "words.tar", "w") as tar:
        tar.add(folder, ".")
    with pytest.raises(UserError, match="maybe gives no recordings, it holds no files"):
        read_recordings(tmp_path / "words.tar")


@pytest.mark.parametrize(("name", "words_of_it"), [("unknown_length", "are equal"), ("silent", "all 10 recordings in .* are silent")])
def test_recordings_that_are_all_equal_are_refused(tmp_path: Path, name: str, words_of_it: str) -> None:
    for file in words(tmp_path).glob("*/*.wav"):
        shutil.copy(DATA / "odd" / f"{name}.wav", file)
    with pytest.raises(UserError, match=f"{words_of_it}.*set --data"):
        speech(tmp_path)


@pytest.mark.parametrize("masked", [False, True])
def test_recordings_shorter_than_a_models_masked_span_are_padded_and_told(tmp_path: Path, masked: bool) -> None:
    """0.05 s are 800 samples at 16 kHz; ten frames of 20 x 16 samples are 3,200, and transformers fails on less in training."""
    transformers = pytest.importorskip("transformers")
    from tests.rl_skip.pretrained_folders import SPEECH

    config = transformers.Wav2Vec2Config(**SPEECH, num_labels=2, classifier_proj_size=16)
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(tmp_path / "model")
    task = speech(words(tmp_path / "data", "long.wav"), TaskOptions(model=str(tmp_path / "model"), label_order="no,yes"))
    assert any(said.startswith("10 of 11 recordings were padded with silence to 0.200 s, the shortest that the model") for said in task.remarks)
    rows = {split: task.load(split).inputs for split in SPLITS}
    model = task.build(NetworkConfig()).model  # type: ignore[attr-defined]
    for inputs in rows.values():
        assert isinstance(inputs, dict) and inputs["input_values"].shape[1] in (3200, 16352)
        assert ("attention_mask" in inputs) is masked
        assert not masked or {*inputs["attention_mask"].sum(dim=1).tolist()} <= {3200, 16352}
        assert not masked or abs(inputs["input_values"][0, :800].std() - 1) < 0.01  # the silence is no part of the deviation
        assert model.train()(**inputs).logits.isfinite().all()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config.to_dict() | {"apply_spec_augment": False}))
    task = speech(tmp_path / "data", TaskOptions(model=str(tmp_path / "model"), label_order="no,yes"))
    assert not any("padded" in said for said in task.remarks)  # 800 samples are enough for a frame of 320


def test_recordings_shorter_than_a_masked_span_of_a_spectrogram_are_padded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "classifier_proj_size": 8}
    transformers.Wav2Vec2BertForSequenceClassification(transformers.Wav2Vec2BertConfig(**small, num_labels=2)).save_pretrained(tmp_path / "model")
    transformers.SeamlessM4TFeatureExtractor().save_pretrained(tmp_path / "model")
    task = speech(words(tmp_path / "data", "one_sample.wav"), TaskOptions(model=str(tmp_path / "model"), label_order="no,yes"))
    assert any(said.startswith("11 of 11 recordings were padded with silence to 0.215 s") for said in task.remarks)
    inputs = task.load("train").inputs
    model = task.build(NetworkConfig()).model.train()  # type: ignore[attr-defined]
    assert isinstance(inputs, dict) and model(**inputs).logits.isfinite().all()
