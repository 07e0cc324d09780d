"""Spoken words: recordings of up to a second, as log-mel frames."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

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
from rl_skip.tasks.folders import Notes
from rl_skip.tasks.options import TaskOptions, model_defaults, passes
from rl_skip.tasks.reading import class_indices, class_names, divided, reading, repeats
from rl_skip.tasks.recordings import NAME, Recordings, read_recordings
from rl_skip.tasks.tokens import no_embedding
from rl_skip.tasks.waves import Recording

__all__ = ["SPEECH", "log_mel", "mel_filters", "resampled", "speech"]

RATE = 8000
WINDOW = 256  # samples, 32 ms
HOP = 80  # samples, 10 ms
MELS = 40
FRAMES = 100  # 1.02 s
STRIDE = 5
LONGEST = WINDOW + (FRAMES - 1) * HOP
SPECTRUM_WINDOW, SPECTRUM_HOP = 0.025, 0.01  # seconds, of the spectrograms that models are given
DYNAMIC_RANGE = 1e-8  # 80 dB below a recording's loudest value, all is silence
NOUN, SILENT = "recordings", "silent throughout"


def speech(path: Path, options: TaskOptions = DEFAULTS) -> Task:
    """The task `speech`: 20 tokens of 5 frames, of which a recording fills as many as it is long.

    Where there are folders for splits, these are taken, and one that is missing is a sixth of each class of the training
    part. Where names carry takes, the split is that of the Free Spoken Digit Dataset: takes 0 to 4 are test and, of its
    training part, 5 to 9 are validation. Otherwise 60% are train, 20% validation, 20% test.

    Args:
        path: a folder or tar of WAV files of any rate, all in one folder and named `{label}_{speaker}_{take}.wav`, or in a
            folder per label, perhaps below folders `train`, `validation` and `test`.
        options: a model that is given gets waveforms at its own rate instead, as its preprocessor configuration says.

    Raises:
        UserError: if it holds anything else, a recording cannot be read, or all are equal or silent.
    """
    parts, remarks = read_recordings(path)
    classes = class_names(parts["train"].labels, path)
    labels = {split: class_indices(part.labels, classes, path) for split, part in parts.items()}
    rows = (_split_by_take(parts["train"], labels["train"]) if len(parts) == 1 else None) or divided(labels, path)
    remarks += _remarks(parts, path, read_extractor(options.model).sampling_rate if options.pretrained else RATE)
    examples: dict[Split, tuple[list[Recording], Tensor]] = {
        split: ([parts[part].recordings[row] for row in of.tolist()], labels[part][of]) for split, (part, of) in rows.items()
    }
    remarks += repeats({split: [recording.digest for recording in recordings] for split, (recordings, _) in examples.items()}, path, NOUN)
    if options.pretrained:
        return _for_model(examples, classes, options, remarks)

    def load(split: Split) -> Examples:
        recordings, numbers = examples[split]
        frames, mask = log_mel([resampled(_loudest_second(samples, rate), rate, RATE) for samples, rate, *_ in recordings])
        return Examples({"frames": frames, "mask": mask}, numbers)

    embedding = FrameEmbedding(FRAMES, MELS, STRIDE)
    return Task("speech", classes, load, embedding, embedding.tokens, labels=lambda split: examples[split][1], remarks=tuple(remarks))


def _remarks(parts: Mapping[Split, Recordings], path: Path, wanted: int) -> list[str]:
    """Says which recordings are not taken as they are, where samples are wanted at a rate.

    Raises:
        UserError: if all are silent.
    """
    notes, total = Notes(), 0
    for part in parts.values():
        for name, (samples, rate, channels, _) in zip(part.files, part.recordings, strict=True):
            total += 1
            if len(samples) > LONGEST * rate // RATE:
                notes.add(f"cut to the loudest {LONGEST / RATE:.3g} s", name)
            if rate != wanted:
                notes.add(f"brought from {rate} Hz to {wanted} Hz", name)
            if channels > 1:
                notes.add("brought to one channel, the mean of several", name)
            if not samples.any():
                notes.add(SILENT, name)
    if len(notes.names.get(SILENT, ())) == total:
        raise UserError(f"all {total} recordings in {path} are silent; set --data to recordings with sound in them")
    return notes.sentences(total, NOUN)


def _for_model(examples: Mapping[Split, tuple[list[Recording], Tensor]], names: tuple[str, ...], options: TaskOptions, remarks: list[str]) -> Task:
    """The task around a model from transformers, which gets waveforms, or what its feature extractor makes of them."""
    folder = options.model
    config = read_config(folder)
    order, classes = order_of_model(names, config, folder, options.label_order)
    extractor = read_extractor(folder)
    rate = extractor.sampling_rate
    is_wave = extractor.model_input_names[0] == "input_values" and extractor.feature_size == 1
    least = least_samples(config, rate)
    recordings = [recording for part, _ in examples.values() for recording in part]
    short = sum(len(recording.samples) * rate < least * recording.rate for recording in recordings)
    if short:
        remarks.append(
            f"{short} of {len(recordings)} recordings {'was' if short == 1 else 'were'} padded with silence to {least / rate:.3f} s, "
            f"the shortest that the model in {folder} can be trained on"
        )

    @cache
    def load(split: Split) -> Examples:
        waves = [resampled(_loudest_second(samples, own), own, rate) for samples, own, *_ in examples[split][0]]
        padding = {"padding": "max_length", "max_length": max(least, *map(len, waves))} if is_wave else {}
        if not is_wave:
            waves = [pad(wave, (0, max(0, least - len(wave)))) for wave in waves]
        with reading(f"the recordings for {split}", f"such as the feature extractor in {folder} takes"):
            features = extractor([wave.numpy() for wave in waves], sampling_rate=rate, return_tensors="pt", **padding)
        inputs = {name: tensor.float() if tensor.is_floating_point() else tensor.long() for name, tensor in features.items()}
        if is_wave and "attention_mask" in inputs:
            inputs["attention_mask"][:, :least] = 1  # what a short one is padded with counts as silence that was recorded
        return Examples(inputs, order[examples[split][1]])

    def network(_size: NetworkConfig) -> LayerStack:
        return load_model(folder, classes, head=options.head, processor=extractor)

    def in_words(examples: Examples) -> list[str]:
        return [classes[label] for label in examples.labels.tolist()]

    task = Task("speech", classes, load, no_embedding, tokens=1, in_words=in_words, network=network, remarks=tuple(remarks))
    return replace(task, labels=lambda split: order[examples[split][1]])


def least_samples(config: Any, rate: int) -> int:
    """How long a waveform must be for a model: for one frame, and in training for one masked span.

    SpecAugment (Park et al. 2019) masks spans of `mask_time_length` frames, and transformers fails on batches that are shorter. Frames come
    from the convolutions before the layers where the model has such, else from a spectrogram, of whose frames two may become one.
    """
    masked = getattr(config, "apply_spec_augment", True) and getattr(config, "mask_time_prob", 0) > 0
    frames = max(1, config.mask_time_length) if masked else 1
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not isinstance(kernels, list | tuple) or not isinstance(strides, list | tuple):
        return round((SPECTRUM_WINDOW + (2 * frames - 1) * SPECTRUM_HOP) * rate)
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        frames = (frames - 1) * stride + kernel
    return int(frames)


def resampled(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """A recording (S,) at another rate: the same spectrum, cut off or continued with zeros."""
    if rate == wanted:
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    spectrum = torch.fft.rfft(samples)
    return torch.fft.irfft(spectrum[: count // 2 + 1], n=count) * (count / len(samples))


def _split_by_take(part: Recordings, labels: Tensor) -> dict[Split, tuple[Split, Tensor]] | None:
    """The split of the Free Spoken Digit Dataset; None where names carry no takes, or a class would miss from a split."""
    matches = [NAME.fullmatch(PurePosixPath(file).stem) for file in part.files]
    takes = [int(match["take"]) for match, name in zip(matches, part.labels, strict=True) if match and match["label"] == name]
    if len(takes) < len(part.files):
        return None
    fives = torch.tensor(takes) // 5
    chosen: dict[Split, Tensor] = {"train": fives >= 2, "validation": fives == 1, "test": fives == 0}
    if any(len(labels[mask].unique()) < len(labels.unique()) for mask in chosen.values()):
        return None
    return {split: ("train", mask.nonzero().squeeze(1)) for split, mask in chosen.items()}


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


def _loudest_second(samples: Tensor, rate: int = RATE) -> Tensor:
    """(S,) → at most 1.02 s of it in [-1, 1], starting at the hop from which on it has the most energy."""
    samples = samples / 2**15 if samples.dtype == torch.int16 else samples.float()
    longest, hop = LONGEST * rate // RATE, HOP * rate // RATE
    if len(samples) <= longest:
        return samples
    energy = pad(samples.double().square().cumsum(0), (1, 0))
    start = hop * int((energy[longest:] - energy[:-longest])[::hop].argmax())
    return samples[start : start + longest]


def mel_filters() -> Tensor:
    """(MELS, WINDOW // 2 + 1): triangles with a peak of 1, evenly spaced in mel = 1127 ln(1 + hertz / 700) up to RATE / 2.

    Stevens, Volkmann and Newman (1937) for the scale, Davis and Mermelstein (1980) for the triangles.
    """
    highest = 1127 * math.log1p(RATE / 2 / 700)
    hertz = torch.arange(WINDOW // 2 + 1) * RATE / WINDOW  # (bins,)
    edges = 700 * torch.expm1(torch.linspace(0, highest, MELS + 2) / 1127)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)).clamp(min=0)


SPEECH = BundledTask(speech, lambda given: passes(given, 8, 12) | model_defaults(given))
