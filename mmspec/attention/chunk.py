"""ChunkCall: what the attention of a prompt's later chunk must know, and how it attends in tiles.

    columns  committed ............... | tile 0 | tile 1 | tile 2 |
    tile 1   all of them, without mask          | causal |

The keys of the whole chunk are in the buffers already, so each tile of queries is a score call of
one path behind all that stands before it. However long the text, no mask is larger than a tile (or
a tile and a window), no key is copied, and what a tile cannot see is not computed. On a GPU the
whole chunk is one tile where a flash kernel takes it (`ChunkFlash`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmspec.attention.call import RowNodes, TreeCall
from mmspec.attention.chunk_flash import ChunkFlash
from mmspec.attention.homes import Homes
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.attention.setbacks import SETBACKS, Way
from mmspec.attention.tree import tree_attention
from mmspec.kv import FlatLayer
from mmspec.uploads import upload

_TILE = 512  # queries: enough rows for the matrix products, little to compute in vain
_FEW = 128  # queries: as many as a tree has, for which the ladder's kernels are made
_FLASH = ChunkFlash()


@dataclass
class TileCall(TreeCall):
    """The score call of one tile, whose masks the tiles of a chunk share."""

    masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    most_mask: ClassVar[int] = 2**18  # over all columns in one piece nothing is rounded twice

    def _mask(self, row: RowNodes, reach: Reach | None, group: int, like: Tensor) -> Tensor:
        begins = None
        if reach is not None:  # two tiles that look as far back as each other have one mask
            positions = row.committed + row.depths
            begins = (reach.first_visible(positions) - row.first_column(reach)).tobytes()
        columns = row.num_columns - (row.committed if reach is None else row.first_column(reach))
        key = (row.num_nodes, columns, begins, group, like.dtype)
        if key not in self.masks:
            self.masks[key] = super()._mask(row, reach, group, like)
        return self.masks[key]


@dataclass
class ChunkCall:
    """`count` prompt tokens behind the `committed` ones of one row, each of which sees all before
    it. Travels through the model's forward as a TreeCall does."""

    start: int  # first slot of the row's region
    committed: int
    count: int
    layers: Sequence[FlatLayer]  # the cache's, by layer index
    reaches: Sequence[Reach]  # by layer index
    flash: ChunkFlash = _FLASH
    num_attended: int = 0  # layers so far
    _tiles: list[TileCall] = field(default_factory=list)
    _dense: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.homes = Homes(self.layers)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> Tensor:
        """`tree_attention` of `query` (1, heads, count, head_dim), or of the last of them alone,
        where a layer that keeps no keys computes no more (Gemma 4)."""
        asked = query.shape[2]
        if asked < self.count:
            later = self.committed + self.count - asked
            last = ChunkCall(self.start, later, asked, self.layers, self.reaches, self.flash)
            return last.attend(query, keys, values, rule=rule)
        operands = (query, keys, values)
        ways = [Way("tiles", partial(self._attend_in_tiles, *operands, rule=rule))]
        if asked > _FEW and self.flash.can_attend(*operands, rule=rule):
            at_once = partial(self.flash.attend, start=self.start, committed=self.committed)
            ways.insert(0, Way(self.flash.name, partial(at_once, *operands, rule=rule)))
        return SETBACKS.first_that_works(ways, *operands, call=self.tiles()[0], rule=rule)

    def _attend_in_tiles(
        self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule
    ) -> Tensor:
        out = query.new_empty(1, self.count, query.shape[1], values.shape[2])
        first = 0
        for call in self.tiles():
            stop = first + call.rows[0].num_nodes
            own = query[:, :, first:stop]
            out[:, first:stop] = tree_attention(own, keys, values, call=call, rule=rule)
            first = stop
        return out

    def tiles(self) -> list[TileCall]:
        """The calls of the tiles, from the first on; the layers share them and their masks."""
        if not self._tiles:
            masks: dict[tuple[object, ...], Tensor] = {}
            self._tiles = [
                TileCall([row], self.layers, self.reaches, masks=masks) for row in self._rows()
            ]
        return self._tiles

    def _rows(self) -> Iterator[RowNodes]:
        for first in range(0, self.count, _TILE):
            count = min(_TILE, self.count - first)
            path = np.tri(count, dtype=np.bool_)
            yield RowNodes(self.start, self.committed + first, path, np.arange(count))

    def dense_mask(self, reach: Reach, like: Tensor) -> Tensor:
        """For a model's own attention over the row's view: additive, (1, 1, count, columns)."""
        key = (reach, like.dtype, like.device)
        if key not in self._dense:
            positions = np.arange(self.committed, self.committed + self.count)
            begins = upload(reach.first_visible(positions), like.device)[:, None]
            own = upload(positions, like.device)[:, None]
            columns = torch.arange(self.committed + self.count, device=like.device)
            hidden = (columns > own) | (columns < begins)
            mask = like.new_zeros(1, 1, *hidden.shape)
            self._dense[key] = mask.masked_fill_(hidden, torch.finfo(like.dtype).min)
        return self._dense[key]
