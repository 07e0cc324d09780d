"""Spoken words: recordings of up to a second, as log-mel frames."""

import io
import math
import re
import tarfile
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_skip.attached.classes import order_of_model
from rl_skip.attached.pretrained import load_model, read_config, read_extractor
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.blocks import FrameEmbedding
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import DEFAULTS, BundledTask
from rl_skip.tasks.options import TaskOptions, model_defaults
from rl_skip.tasks.reading import class_indices, class_names, reading, split_rows
from rl_skip.tasks.tokens import no_embedding

__all__ = ["SPEECH", "log_mel", "mel_filters", "resampled", "speech"]

RATE = 8000
WINDOW = 256  # samples, 32 ms
HOP = 80  # samples, 10 ms
MELS = 40
FRAMES = 100  # 1.02 s
STRIDE = 5
LONGEST = WINDOW + (FRAMES - 1) * HOP
DYNAMIC_RANGE = 1e-8  # 80 dB below a recording's loudest value, all is silence
EXPECTED = "a folder or tar of 8 kHz mono 16-bit wav files"
NAME = re.compile(r"(?P<label>[^_]+)_(?P<speaker>.+)_(?P<take>\d+)")


def speech(path: Path, options: TaskOptions = DEFAULTS) -> Task:
    """The task `speech`: 20 tokens of 5 frames, of which a recording fills as many as it is long.

    Where names carry takes, the split is that of the Free Spoken Digit Dataset: takes 0 to 4 are test and, of its
    training part, 5 to 9 are validation. Otherwise 60% are train, 20% validation, 20% test.

    Args:
        path: a folder or tar of 8 kHz mono 16-bit wav files, all in one folder and named `{label}_{speaker}_{take}.wav`,
            or in a folder per label.
        options: a model that is given gets waveforms at its own rate instead, as its preprocessor configuration says.

    Raises:
        UserError: if it holds anything else, or a recording is cut short.
    """
    recordings = _recordings(path)
    names = _labels(list(recordings), path)
    classes = class_names(names, path)
    labels = class_indices(names, classes, path)
    rows = _split_by_take(list(recordings), names, labels) or split_rows(labels, path)
    samples = list(recordings.values())
    if options.pretrained:
        return _for_model(samples, labels, rows, classes, options)

    def load(split: Split) -> Examples:
        frames, mask = log_mel([samples[row] for row in rows[split].tolist()])
        return Examples({"frames": frames, "mask": mask}, labels[rows[split]])

    embedding = FrameEmbedding(FRAMES, MELS, STRIDE)
    return Task("speech", classes, load, embedding, embedding.tokens)


def _for_model(samples: list[Tensor], labels: Tensor, rows: dict[Split, Tensor], names: tuple[str, ...], options: TaskOptions) -> Task:
    """The task around a model from transformers, which gets waveforms, or what its feature extractor makes of them."""
    folder = options.model
    order, classes = order_of_model(names, read_config(folder), folder, options.label_order)
    extractor = read_extractor(folder)
    rate = extractor.sampling_rate
    padding = {"padding": True} if extractor.model_input_names[0] == "input_values" and extractor.feature_size == 1 else {}

    @cache
    def load(split: Split) -> Examples:
        waves = [resampled(_loudest_second(samples[row]), RATE, rate).numpy() for row in rows[split].tolist()]
        features = extractor(waves, sampling_rate=rate, return_tensors="pt", **padding)
        inputs = {name: tensor.float() if tensor.is_floating_point() else tensor.long() for name, tensor in features.items()}
        return Examples(inputs, order[labels[rows[split]]])

    def network(_size: NetworkConfig) -> LayerStack:
        return load_model(folder, classes, head=options.head, processor=extractor)

    def in_words(examples: Examples) -> list[str]:
        return [classes[label] for label in examples.labels.tolist()]

    return Task("speech", classes, load, no_embedding, tokens=1, in_words=in_words, network=network)


def resampled(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """A recording (S,) at another rate: the same spectrum, cut off or continued with zeros."""
    if rate == wanted:
        return samples
    count = round(len(samples) * wanted / rate)
    spectrum = torch.fft.rfft(samples)
    return torch.fft.irfft(spectrum[: count // 2 + 1], n=count) * (count / len(samples))


def _recordings(path: Path) -> dict[str, Tensor]:
    """Name → samples (S,) int16, sorted by name, so that a tar and a folder of the same files are the same."""
    with reading(path, EXPECTED):
        recordings = {name: _samples(content, f"{name} in {path}") for name, content in _wav_files(path)}
    if not recordings:
        raise UserError(f"{path} holds no wav files; set --data to {EXPECTED}")
    return dict(sorted(recordings.items()))


def _wav_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in path.rglob("*"):
            if _is_wav(file.name) and file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and _is_wav(PurePosixPath(member.name).name) else None
            if content is not None:
                yield str(PurePosixPath(member.name)), content.read()


def _is_wav(name: str) -> bool:
    return name.lower().endswith(".wav") and not name.startswith(".")


def _samples(content: bytes, what: str) -> Tensor:
    with reading(what, EXPECTED), wave.open(io.BytesIO(content)) as file:
        form = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
        if form != (RATE, 1, 16):
            raise UserError(f"{what} has {form[0]} Hz, {form[1]} channel(s) and {form[2]} bits; set --data to {EXPECTED}")
        promised = file.getnframes()
        data = file.readframes(promised)
    if len(data) != 2 * promised:
        raise UserError(f"{what} is cut short: it holds {len(data) // 2} of {promised} samples; set --data to whole files")
    if not promised:
        raise UserError(f"{what} holds no samples; set --data to recordings that do")
    return torch.frombuffer(bytearray(data), dtype=torch.int16)


def _labels(names: list[str], path: Path) -> list[str]:
    """The folder's name where there are several folders, else the first part of the file's name."""
    folders = [PurePosixPath(name).parent.name for name in names]
    if len(set(folders)) > 1:
        if "" in folders:
            raise UserError(f"{names[folders.index('')]} in {path} is in no label's folder, others are; set --data to one folder, or one per label")
        return folders
    labels = []
    for name in names:
        match = NAME.fullmatch(PurePosixPath(name).stem)
        if match is None:
            raise UserError(f"{name} in {path} is not named {{label}}_{{speaker}}_{{take}}.wav; name it so, or set --data to a folder per label")
        labels.append(match["label"])
    return labels


def _split_by_take(files: list[str], names: list[str], labels: Tensor) -> dict[Split, Tensor] | None:
    """The split of the Free Spoken Digit Dataset; None where names carry no takes, or a class would miss from a split."""
    matches = [NAME.fullmatch(PurePosixPath(file).stem) for file in files]
    takes = [int(match["take"]) for match, name in zip(matches, names, strict=True) if match and match["label"] == name]
    if len(takes) < len(files):
        return None
    fives = torch.tensor(takes) // 5
    chosen: dict[Split, Tensor] = {"train": fives >= 2, "validation": fives == 1, "test": fives == 0}
    if any(len(labels[mask].unique()) < len(labels.unique()) for mask in chosen.values()):
        return None
    return {split: mask.nonzero().squeeze(1) for split, mask in chosen.items()}


def log_mel(recordings: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Log-mel frames with zero mean and unit deviation in each recording, so that loudness does not matter.

    Args:
        recordings: samples (S,) of each. What is longer than a second is cropped to its loudest second.

    Returns:
        Frames (N, 100, 40), zero past the end; mask (N, 100), true where there is sound.
    """
    lengths = torch.tensor([min(len(samples), LONGEST) for samples in recordings])
    counts = (1 + (lengths - WINDOW) // HOP).clamp(min=1)
    mask = torch.arange(FRAMES) < counts.unsqueeze(1)  # (N, F)
    window, filters = torch.hann_window(WINDOW), mel_filters()
    power = []
    for some in (recordings[first : first + 256] for first in range(0, len(recordings), 256)):  # what the spectra take of memory is bounded
        samples = torch.stack([pad(cropped, (0, LONGEST - len(cropped))) for cropped in map(_loudest_second, some)])  # (256, LONGEST)
        spectra = torch.stft(samples, WINDOW, HOP, window=window, center=False, return_complex=True)  # (256, bins, F)
        power.append((filters @ spectra.abs().square()).transpose(1, 2))
    mel = torch.cat(power) * mask.unsqueeze(2)  # (N, F, MELS)
    loudest = mel.amax(dim=(1, 2), keepdim=True).clamp(min=1e-10)
    level = (mel / loudest).clamp(min=DYNAMIC_RANGE).log() * mask.unsqueeze(2)
    entries = (counts * MELS)[:, None, None]
    centred = (level - level.sum(dim=(1, 2), keepdim=True) / entries) * mask.unsqueeze(2)
    deviation = (centred.square().sum(dim=(1, 2), keepdim=True) / entries).sqrt()
    return centred / deviation.clamp(min=1e-5), mask


def _loudest_second(samples: Tensor) -> Tensor:
    """(S,) → at most (LONGEST,) in [-1, 1], starting at the hop from which on it has the most energy."""
    samples = samples.float() / 2**15
    if len(samples) <= LONGEST:
        return samples
    energy = pad(samples.double().square().cumsum(0), (1, 0))
    start = HOP * int((energy[LONGEST:] - energy[:-LONGEST])[::HOP].argmax())
    return samples[start : start + LONGEST]


def mel_filters() -> Tensor:
    """(MELS, WINDOW // 2 + 1): triangles with a peak of 1, evenly spaced in mel = 1127 ln(1 + hertz / 700) up to RATE / 2.

    Stevens, Volkmann and Newman (1937) for the scale, Davis and Mermelstein (1980) for the triangles.
    """
    highest = 1127 * math.log1p(RATE / 2 / 700)
    hertz = torch.arange(WINDOW // 2 + 1) * RATE / WINDOW  # (bins,)
    edges = 700 * torch.expm1(torch.linspace(0, highest, MELS + 2) / 1127)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)


FROM_SCRATCH = {"warmup_epochs": 8, "epochs": 12}
SPEECH = BundledTask(speech, lambda given: FROM_SCRATCH | model_defaults(given))
