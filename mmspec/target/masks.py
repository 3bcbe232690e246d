"""Attention masks of a score call: each node sees its row's committed tokens and its ancestors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmspec.attention import Reach, RowNodes
from mmspec.kv import WritePlan
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


@dataclass(frozen=True)
class MaskRule:
    """Which masks a model's layers need and in which form its forward takes them."""

    kinds: tuple[LayerKind, ...]  # the distinct kinds of its attention layers
    window: int | None  # tokens that a sliding layer sees, itself included
    chunk: int | None  # length of the blocks of a chunked layer
    as_dict: bool  # one mask a kind in a dict, or one for all layers
    unmasked: tuple[str, ...] = ()  # kinds that attend to nothing, and are told so in the dict

    def build(self, rows: Sequence[RowNodes], dtype: torch.dtype) -> Masks:
        """Additive masks, (batch, 1, nodes, columns): 0 where a node may look, the dtype's minimum
        elsewhere (a boolean mask would be *added* by eager attention).

        Rows shorter than the longest are padded: columns past a row's end are never seen, and a
        padding node sees just the row's first token.
        """
        nodes, columns = max(row.num_nodes for row in rows), max(row.num_columns for row in rows)
        masks: dict[str, Tensor] = {}
        for kind in self.kinds:
            reach = self.reach(kind)
            mask = torch.full((len(rows), 1, nodes, columns), torch.finfo(dtype).min, dtype=dtype)
            for own, row in zip(mask[:, 0], rows, strict=True):
                own[row.num_nodes :, 0] = 0.0
                own = own[: row.num_nodes, : row.num_columns]
                if reach.is_full:  # a long prefix is filled, not computed
                    own[:, : row.committed] = 0.0
                    first, seen = row.committed, row.visible
                else:
                    first, seen = row.first_column(reach), row.seen(reach)
                own[:, first:].masked_fill_(torch.from_numpy(seen), 0.0)
            masks[kind] = mask
        return self.given(masks)

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
            reach = self.reach(kind)
            if not reach.is_full:  # a long prefix is filled, not computed
                first = torch.from_numpy(reach.first_visible(np.arange(length, length + count)))
                columns = torch.arange(length + count, device=device)
                unseen = columns < first.to(device).unsqueeze(1)
                mask.masked_fill_(unseen, torch.finfo(dtype).min)
            masks[kind] = mask[None, None]
        return self.given(masks)

    def reach(self, kind: str) -> Reach:
        """How far back the layers of a kind look."""
        if kind == "sliding_attention":
            return Reach(window=self.window)
        return Reach(chunk=self.chunk) if kind == "chunked_attention" else Reach()


def nodes_of(trees: Sequence[TokenTree], plan: WritePlan, written: Sequence[int]) -> list[RowNodes]:
    """Of each tree the nodes behind the first `written` ones, which a forward by the plan
    computes."""
    placed = zip(trees, plan.starts, plan.lengths, written, strict=True)
    return [
        RowNodes(start, end - old, tree.ancestor_mask[old:], np.array(tree.depths))
        for tree, start, end, old in placed
    ]


def on_device(masks: Masks, device: torch.device) -> Masks:
    if masks is None or isinstance(masks, Tensor):
        return None if masks is None else upload(masks, device)
    return {kind: None if m is None else upload(m, device) for kind, m in masks.items()}
