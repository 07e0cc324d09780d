"""Pictures as a pretrained vision model wants them: its size, its channels, its mean and deviation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rl_skip.core.bounded import read_json
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs

__all__ = ["PixelPreparation"]

FILE = "preprocessor_config.json"
BICUBIC = 3
BYTE = 1 / 255


@dataclass(frozen=True)
class PixelPreparation:
    """Pixels (B, C, H, W) of any size → what the model takes. It runs on each batch, so that a data set is kept as small as it is."""

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    """Of each channel, after scaling."""
    deviation: tuple[float, ...]
    scale: float = BYTE
    """What values are multiplied with first."""
    mode: str = "bilinear"

    @classmethod
    def of(cls, folder: str, config: Any, train: Tensor) -> "PixelPreparation":
        """From the model's preprocessor_config.json; what is missing there from the model, mean and deviation from the training pixels.

        Raises:
            UserError: if pictures of that many channels cannot become the model's.
        """
        file = Path(folder, FILE)
        advice = "set --model to a folder that save_pretrained wrote"
        saved = read_json(file, advice) if file.is_file() else {}
        if not isinstance(saved, dict):
            raise UserError(f"{file} holds no JSON object; {advice}")
        channels = getattr(config, "num_channels", 3)
        if train.shape[1] not in (1, channels):
            raise UserError(f"the pictures have {train.shape[1]} channels, the model in {folder} takes {channels}; set --data to others")
        size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size, config.image_size)
        unit = not train.is_floating_point() or float(train.max()) > 1
        scale = float(saved.get("rescale_factor", BYTE)) if unit and saved.get("do_rescale", True) else 1.0
        mean, deviation = saved.get("image_mean"), saved.get("image_std")
        if not saved.get("do_normalize", True):
            mean, deviation = [0.0] * channels, [1.0] * channels
        if mean is None or deviation is None:
            statistics = torch.std_mean(train.float() * scale, dim=(0, 2, 3), correction=0)
            deviation, mean = (statistic.expand(channels).tolist() for statistic in statistics)
        mode = "bicubic" if saved.get("resample") == BICUBIC else "bilinear"
        return cls((int(size[0]), int(size[1])), channels, tuple(mean), tuple(value or 1.0 for value in deviation), scale, mode)

    def __call__(self, pixels: Inputs) -> Inputs:
        assert isinstance(pixels, Tensor)
        pixels = pixels.float() * self.scale
        if pixels.shape[2:] != self.size:
            pixels = interpolate(pixels, self.size, mode=self.mode, antialias=True, align_corners=False)
        mean, deviation = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.deviation))
        return (pixels.expand(-1, self.channels, -1, -1) - mean) / deviation

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes preprocessor_config.json, as transformers reads it."""
        size = {"height": self.size[0], "width": self.size[1]}
        resample = BICUBIC if self.mode == "bicubic" else 2
        described = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size, "resample": resample}
        described |= {"do_rescale": self.scale != 1, "rescale_factor": self.scale, "do_normalize": True}
        described |= {"image_mean": list(self.mean), "image_std": list(self.deviation)}
        Path(folder, FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
