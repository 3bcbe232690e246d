"""Whose keys a layer attends to: its own, or those of a layer before it that it shares."""

import weakref
from collections.abc import Sequence

from torch import Tensor

from mmspec.kv import FlatLayer


class Homes:
    """Of the layers of one forward. Families whose later layers keep no keys (Gemma 3n, Gemma 4)
    hand them the very tensors of an earlier layer: by these its buffers are found."""

    def __init__(self, layers: Sequence[FlatLayer]) -> None:
        self._layers = layers
        # Before the first forward over a cache nobody knows: no layer has buffers then.
        self._may_share = not all(f.is_initialized for f in layers if f.keeps_tokens)
        # Not held: of a long prompt all layers' keys would be in memory twice.
        self._seen: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def of(self, index: int, key: Tensor) -> int:
        """The layer that keeps what layer `index` is handed as `key`. Raises RuntimeError for a
        layer that keeps no keys and was handed nobody's."""
        if not self._may_share:
            return index
        if self._layers[index].is_initialized:
            self._seen[id(key)] = (weakref.ref(key), index)
            return index
        handed, home = self._seen.get(id(key), (None, index))
        if handed is None or handed() is not key:  # an id is given again
            raise RuntimeError(f"layer {index} keeps no keys, and shares those of no other layer")
        return home
