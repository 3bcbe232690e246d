"""Reach: how far back a layer looks, counted in positions of the text."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Reach:
    """The whole text, a sliding window, or the block of a fixed length that the token lies in."""

    window: int | None = None  # tokens seen, the token itself included
    chunk: int | None = None  # length of the blocks

    @property
    def is_full(self) -> bool:
        return self.window is None and self.chunk is None

    def first_visible(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first position that a token at each of `positions` sees, in their shape."""
        first = np.zeros_like(positions)
        if self.window is not None:
            first = np.maximum(first, positions - self.window + 1)
        if self.chunk is not None:
            first = np.maximum(first, positions // self.chunk * self.chunk)
        return first
