"""Whose keys a layer attends to: its own, or those of a layer before it that it shares."""

from collections.abc import Sequence

from torch import Tensor

from mmspec.kv import FlatLayer


class Homes:
    """Of the layers of one forward. Families whose later layers keep no keys (Gemma 3n, Gemma 4)
    hand them the very tensors of an earlier layer: by these its buffers are found."""

    def __init__(self, layers: Sequence[FlatLayer]) -> None:
        self._layers = layers
        self._is_shared = not all(layer.is_initialized for layer in layers)
        self._seen: dict[int, tuple[Tensor, int]] = {}  # held, so that no id is given twice

    def of(self, index: int, key: Tensor) -> int:
        """The layer that keeps what layer `index` is handed as `key`. Raises RuntimeError for a
        layer that keeps no keys and was handed nobody's."""
        if not self._is_shared:
            return index
        if self._layers[index].is_initialized:
            self._seen[id(key)] = (key, index)
            return index
        if id(key) not in self._seen:
            raise RuntimeError(f"layer {index} keeps no keys, and shares those of no other layer")
        return self._seen[id(key)][1]
