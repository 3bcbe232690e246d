"""NewNodes: what a head's forward has to know of the new nodes of some trees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mmspec.attention import Reach, TreeCall
from mmspec.drafters.heads.attention import OverCache
from mmspec.kv import KVCache, WritePlan
from mmspec.state import Placement
from mmspec.target.masks import nodes_of
from mmspec.tree import TokenTree
from mmspec.uploads import upload


@dataclass(frozen=True)
class NewNodes:
    """The nodes of each row that a forward computes; short rows are padded."""

    given: Tensor  # (batch, nodes) int64, their tokens: on the CPU, or where they were found
    places: Tensor  # (batch, nodes) int64 on the CPU, their positions; siblings share one. Under
    # M-RoPE (planes, batch, nodes)
    counts: tuple[int, ...]  # (batch,) nodes of each row
    leaves: tuple[tuple[int, ...], ...]  # of each row the new nodes without children, from 0 on
    cache: KVCache
    rows: tuple[int, ...]  # (batch,) the cache's numbers
    plan: WritePlan
    call: TreeCall
    device: torch.device

    @cached_property
    def _there(self) -> tuple[Tensor, Tensor]:
        if self.given.device.type != "cpu":
            return self.given, upload(self.places, self.device)
        planes = [self.given, *self.places.view(-1, *self.given.shape)]
        all_there = upload(torch.stack(planes), self.device)  # one copy
        return all_there[0], all_there[1:].view(self.places.shape)

    @property
    def ids(self) -> Tensor:
        """(batch, nodes) int64 on the device"""
        return self._there[0]

    @property
    def positions(self) -> Tensor:
        """As `places`, on the device"""
        return self._there[1]

    @property
    def attend(self) -> OverCache:
        return OverCache(self.cache, self.call)

    def leaves_of(self, states: Tensor) -> Tensor:
        """(batch, nodes, hidden) -> (all rows' leaves, hidden), one row after the other."""
        width = self.given.shape[1]
        flat = [row * width + leaf for row, own in enumerate(self.leaves) for leaf in own]
        return states.flatten(0, 1).index_select(0, upload(flat, states.device))

    def per_row(self, of_leaves: Tensor) -> list[Tensor]:
        """(all rows' leaves, ...) -> one tensor a row."""
        return list(of_leaves.split([len(own) for own in self.leaves]))


@contextmanager
def writing_nodes(
    trees: Sequence[TokenTree],
    cache: KVCache,
    placements: Sequence[Placement],
    *,
    written: Sequence[int] = (),
    ids: Tensor | None = None,
    reaches: Sequence[Reach],
    device: torch.device,
) -> Iterator[NewNodes]:
    """Within it, one forward of a head computes the nodes of each tree behind the first
    `written[i]`, and writes their keys behind the row's committed tokens; `cache.commit` keeps
    them, or not. What a row's first token counts as is its placement's offset, in each plane.

    `ids` (batch, nodes) int64 on the device: the nodes' tokens, in place of the trees' own, which
    are not known yet. `reaches`: of each layer.
    """
    done = list(written) or [0] * len(trees)
    counts = tuple(tree.num_nodes - old for tree, old in zip(trees, done, strict=True))
    rows = [placement.row for placement in placements]
    tokens = np.zeros((len(trees), max(counts)), dtype=np.int64)
    num_planes = len(placements[0].position_offsets)
    positions = np.zeros((num_planes, *tokens.shape), dtype=np.int64)
    for index, (tree, old, placement) in enumerate(zip(trees, done, placements, strict=True)):
        first = cache.length(placement.row) + np.array([placement.position_offsets]).T
        positions[:, index, : counts[index]] = first + np.array(tree.depths[old:])
        tokens[index, : counts[index]] = tree.tokens[old:]
    given = torch.from_numpy(tokens) if ids is None else ids
    with cache.writing(rows, counts, after=done) as plan:
        plan.is_viewed = False
        call = TreeCall(nodes_of(trees, plan, done), cache.flat_layers, reaches)
        leaves = tuple(_leaves(tree, old) for tree, old in zip(trees, done, strict=True))
        places = torch.from_numpy(positions if num_planes > 1 else positions[0])
        yield NewNodes(given, places, counts, leaves, cache, tuple(rows), plan, call, device)


def _leaves(tree: TokenTree, old: int) -> tuple[int, ...]:
    parents = set(tree.parents)
    return tuple(node - old for node in range(old, tree.num_nodes) if node not in parents)
