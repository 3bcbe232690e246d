"""Tilings: by which skinny product a linear layer is computed at how many rows, as measured; and
whether kernels begin before the one ahead has ended."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mmspec.target.kernels.skinny import DTYPES, MAX_LAYERS, MAX_ROWS, Tiling, padded_rows


class Shape(NamedTuple):
    """Linear layers that are computed alike."""

    outs: tuple[int, ...]
    ins: int
    dtype: torch.dtype
    has_bias: bool
    is_gated: bool  # the second one's output is multiplied by the activated first one's
    is_added: bool = False  # the output goes to the stream, by a norm that may sum up shares of it

    @property
    def num_weights(self) -> int:
        return sum(self.outs) * self.ins

    @staticmethod
    def of(
        modules: Sequence[nn.Linear], *, is_gated: bool = False, is_added: bool = False
    ) -> "Shape | None":
        """None for layers that no skinny product computes."""
        biased = {module.bias is not None for module in modules}
        weights = [module.weight for module in modules]
        if (
            len(biased) > 1
            or (is_gated and True in biased)
            or len(modules) > MAX_LAYERS
            or weights[0].dtype not in DTYPES
            or any(type(m) is not nn.Linear or "forward" in m.__dict__ for m in modules)
            or not all(weight.is_contiguous() for weight in weights)
        ):
            return None
        outs = tuple(weight.shape[0] for weight in weights)
        width = weights[0].shape[1]
        return Shape(outs, width, weights[0].dtype, True in biased, is_gated, is_added)


class Tilings:
    """Empty: every layer is the library's product."""

    def __init__(self, chosen: Mapping[tuple[Shape, int], Tiling]) -> None:
        """By shape and `padded_rows`."""
        self.chosen = dict(chosen)
        self.is_early = False

    def find(self, shape: Shape, rows: int) -> Tiling | None:
        """None for the library's product."""
        if not 0 < rows <= MAX_ROWS:
            return None
        return self.chosen.get((shape, padded_rows(rows)))
