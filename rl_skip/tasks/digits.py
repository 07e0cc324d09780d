"""The handwritten digits of scikit-learn: 1,797 images of 8 × 8, inside the package itself."""

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task, stratified_split
from rl_skip.nets.blocks import PatchEmbedding
from rl_skip.tasks import BundledTask

__all__ = ["DIGITS", "digits"]


def digits() -> Task:
    """The task `digits`: 8 tokens, each a row of pixels and its neighbours; 60% train, 20% validation, 20% test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the task 'digits' needs scikit-learn; pip install 'rl-skip[tasks]'") from None
    dataset = load_digits()
    images = torch.tensor(dataset.images, dtype=torch.float32) / 16 * 2 - 1  # (1797, 8, 8) in [-1, 1]
    labels = torch.tensor(dataset.target, dtype=torch.long)
    rows = stratified_split(labels)

    def load(split: Split) -> Examples:
        return Examples(images[rows[split]], labels[rows[split]])

    embedding = PatchEmbedding(height=8, image_width=8, channels=1, patch=1, patch_width=8, overlap=1)
    return Task("digits", tuple(str(digit) for digit in range(10)), load, embedding, embedding.tokens, labels=lambda split: labels[rows[split]])


DIGITS = BundledTask(digits, needs_data=False)
