"""A cache of transformers that knows the routes of its rows. Imported only when a model hands us a cache."""

from torch import LongTensor, Tensor
from transformers import DynamicCache

__all__ = ["RoutedCache"]


class RoutedCache(DynamicCache):
    """A `DynamicCache` whose rows each keep their route when beam search or a caller reorders them."""

    route: Tensor
    """(B, L) bool."""

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.route = self.route[beam_idx.to(self.route.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.route = self.route.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.route = self.route[indices.to(self.route.device)]
