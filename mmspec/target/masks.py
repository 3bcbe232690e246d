"""Attention masks of a score call: each node sees its row's committed tokens and its ancestors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mmspec.tree import TokenTree
from mmspec.uploads import upload

LayerKind = Literal[
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "deepseek_sparse_attention",
]
Masks: TypeAlias = Tensor | dict[str, Tensor | None] | None
"""One for all layers, or one a kind of layer."""
_SEES_ALL = (  # an index chooses among all
    "full_attention", "indexed_attention", "deepseek_sparse_attention",
)  # fmt: skip


@dataclass(frozen=True)
class MaskRule:
    """Which masks a model's layers need and in which form its forward takes them."""

    kinds: tuple[LayerKind, ...]  # the distinct kinds of its attention layers
    window: int | None  # tokens that a sliding layer sees, itself included
    chunk: int | None  # length of the blocks of a chunked layer
    as_dict: bool  # one mask a kind in a dict, or one for all layers
    unmasked: tuple[str, ...] = ()  # kinds that attend to nothing, and are told so in the dict

    def build(
        self,
        trees: Sequence[TokenTree],
        lengths: Sequence[int],
        dtype: torch.dtype,
        *,
        written: Sequence[int] = (),
    ) -> Masks:
        """Additive masks, (batch, 1, nodes, columns): 0 where a node may look, the dtype's minimum
        elsewhere (a boolean mask would be *added* by eager attention).

        `lengths` are the rows' committed tokens. Rows shorter than the longest are padded: columns
        past a row's end are never seen, and a padding node sees just the row's first token. With
        `written` the first so many nodes of each tree are keys only: the others are the queries.
        """
        done = list(written) or [0] * len(trees)
        return self.given(
            {kind: self._build_kind(kind, trees, lengths, dtype, done) for kind in self.kinds}
        )

    def given(self, masks: Mapping[str, Tensor]) -> Masks:
        """One mask a kind, in the form that the model takes; None where no layer attends."""
        if not self.kinds:
            return None
        if self.as_dict:
            return {**masks, **dict.fromkeys(self.unmasked)}
        return masks[self.kinds[0]]

    def build_chunk(
        self,
        length: int,
        count: int,
        blocks: Sequence[tuple[int, int]],
        dtype: torch.dtype,
        *,
        device: torch.device | str = "cpu",
    ) -> Masks:
        """Additive masks, (1, 1, count, length + count), of `count` prompt tokens behind `length`
        committed ones, made on the device: behind a long text they are large. The tokens of a
        block, [start, stop) within the chunk, see each other."""
        masks: dict[str, Tensor] = {}
        for kind in self.kinds:
            mask = torch.zeros(count, length + count, dtype=dtype, device=device)
            own = mask[:, length:]
            own.fill_(torch.finfo(dtype).min).triu_(1)
            for start, stop in blocks:
                own[start:stop, start:stop] = 0.0
            if kind not in _SEES_ALL:  # a long prefix is filled, not computed
                query = torch.arange(length, length + count, device=device).unsqueeze(1)
                key = torch.arange(length + count, device=device).unsqueeze(0)
                is_near = (
                    query - key < self._window
                    if kind == "sliding_attention"
                    else query // self._chunk == key // self._chunk
                )
                mask.masked_fill_(~is_near, torch.finfo(dtype).min)
            masks[kind] = mask[None, None]
        return self.given(masks)

    def _build_kind(
        self,
        kind: LayerKind,
        trees: Sequence[TokenTree],
        lengths: Sequence[int],
        dtype: torch.dtype,
        written: Sequence[int],
    ) -> Tensor:
        nodes = max(tree.num_nodes - done for tree, done in zip(trees, written, strict=True))
        columns = max(length + tree.num_nodes for length, tree in zip(lengths, trees, strict=True))
        mask = torch.full((len(trees), 1, nodes, columns), torch.finfo(dtype).min, dtype=dtype)
        for row, (tree, length, done) in enumerate(zip(trees, lengths, written, strict=True)):
            count = tree.num_nodes - done
            own = mask[row, 0, :count]
            if kind in _SEES_ALL:  # a long prefix is filled, not computed
                own[:, :length] = 0.0
                own = own[:, length : length + tree.num_nodes]
                own.masked_fill_(torch.from_numpy(tree.ancestor_mask)[done:], 0.0)
            else:
                visible = self._visible(kind, tree, length)[done:]
                own[:, : visible.shape[1]].masked_fill_(visible, 0.0)
            mask[row, 0, count:, 0] = 0.0
        return mask

    def _visible(self, kind: LayerKind, tree: TokenTree, length: int) -> Tensor:
        """(nodes, length + nodes), True where a node of a sliding or chunked layer may look."""
        ancestors = torch.from_numpy(tree.ancestor_mask)
        visible = torch.cat([ancestors.new_ones(tree.num_nodes, length), ancestors], dim=1)
        # Windows count positions in the text, not slots: siblings share one.
        depths = torch.tensor(tree.depths)
        query = (length + depths).unsqueeze(1)
        key = torch.cat([torch.arange(length), length + depths]).unsqueeze(0)
        if kind == "sliding_attention":
            return visible & (query - key < self._window)
        return visible & (query // self._chunk == key // self._chunk)

    @property
    def _window(self) -> int:
        assert self.window is not None, "a sliding layer without a window"
        return self.window

    @property
    def _chunk(self) -> int:
        assert self.chunk is not None, "a chunked layer without a chunk length"
        return self.chunk


def on_device(masks: Masks, device: torch.device) -> Masks:
    if masks is None or isinstance(masks, Tensor):
        return None if masks is None else upload(masks, device)
    return {kind: None if m is None else upload(m, device) for kind, m in masks.items()}
