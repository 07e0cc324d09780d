"""The large weights of graphs, each once, in one file beside them. ONNX calls it external data."""

import hashlib
from typing import TYPE_CHECKING

from rl_skip.export.graphs.trace import require

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["WEIGHTS", "ExternalWeights"]

WEIGHTS = "weights.data"
LARGE = 1024
"""Bytes from which on a weight lies in the file; smaller ones are constants that a runtime folds as it loads a graph."""
PAGE = 4096
"""Weights begin at multiples of so many bytes, so that a runtime can map them into memory."""


class ExternalWeights:
    """What `weights.data` holds for graphs that refer to it."""

    def __init__(self) -> None:
        self.content = bytearray()
        """Of the file."""
        self._places: dict[bytes, int] = {}
        """Where each weight begins, by its digest."""

    def take(self, proto: "ModelProto") -> None:
        """Takes the large weights out of a graph, which refers to the file from now on; not those in branches, where runtimes want them inside."""
        for tensor in proto.graph.initializer:
            weight = tensor.raw_data
            if len(weight) < LARGE:
                continue
            digest = hashlib.sha256(weight).digest()
            if digest not in self._places:
                self.content.extend(bytes(-len(self.content) % PAGE))
                self._places[digest] = len(self.content)
                self.content.extend(weight)
            require("onnx").external_data_helper.set_external_data(tensor, WEIGHTS, self._places[digest], len(weight))
            tensor.ClearField("raw_data")

    def put_back(self, proto: "ModelProto") -> None:
        """Puts the weights that were taken back into a graph, so that it stands alone."""
        for tensor in proto.graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if place:
                start = int(place["offset"])
                tensor.raw_data = bytes(self.content[start : start + int(place["length"])])
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
