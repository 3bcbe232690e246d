"""GlideScorer: scores growing trees by a head that sees the target's cache."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmspec.attention import Reach
from mmspec.drafters.glide.glimpse import CacheGlimpse
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.heads import NewNodes, TargetEnds, writing_nodes
from mmspec.kv import KVCache
from mmspec.state import Placement, Scores
from mmspec.target.linears import quick_linears
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class HeadForTarget:
    """A head with all that it needs: its own ends, or the target's."""

    def __init__(self, head: GlideHead, ends: TargetEnds, *, num_layers: int) -> None:
        """`num_layers` of the target."""
        self.head = head
        self.device = ends.device
        self.vocab_size = ends.vocab_size
        config = head.config
        self.target_layers = [layer % num_layers for layer in config.target_layers]
        self.reaches = [Reach(window=config.block.window)] * config.block.num_layers
        self._ends = ends
        self._linears = quick_linears(head)

    def quick(self) -> AbstractContextManager[None]:
        """Within it, its linear layers are computed as a score call's are."""
        return nullcontext() if self._linears is None else self._linears.attached()

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, seq) int64 -> (batch, seq, hidden) where the head lies."""
        if not self.head.config.owns_ends:
            return self._ends.embed(ids).to(self.device, self._ends.dtype)
        weight = self.head.model.embed_tokens.weight
        return torch.nn.functional.embedding(ids.where(ids < weight.shape[0], 0), weight)

    def logits(self, states: Tensor) -> Tensor:
        """(nodes, hidden) -> (nodes, vocab) over the target's vocabulary."""
        if self.head.config.owns_ends:
            return self.head.lm_head(states)[..., : self.vocab_size]
        return self._ends.logits(states)


@dataclass(frozen=True)
class Sight:
    """What one row's draft sees of the target."""

    row: int  # of the target's cache
    committed: int  # tokens that it holds
    position_offsets: tuple[int, ...]  # (planes,) position of a token there = its index + offset


class GlideScorer:
    """For one proposal of some rows. Nothing waits for the device."""

    def __init__(
        self, head: HeadForTarget, target_cache: KVCache, sights: Mapping[int, Sight]
    ) -> None:
        """`sights` by the rows of the head's own cache, whose placements have one offset each: the
        index in the text of the row's first token."""
        self._head = head
        self._target_cache = target_cache
        self._sights = sights

    @torch.no_grad()
    def score(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        *,
        written: Sequence[int] = (),
        ids: Tensor | None = None,
    ) -> list[Scores]:
        """As `Target.score`, but that `logits` are those of the new nodes without children."""
        head = self._head
        with self._seeing(trees, cache, placements, written, ids) as (nodes, positions, glimpse):
            embedded = head.embed(nodes.ids)
            states = head.head.model(embedded, nodes.positions, nodes.attend, positions, glimpse)
            logits = head.logits(nodes.leaves_of(states))
        return [Scores(own) for own in nodes.per_row(logits)]

    @torch.no_grad()
    def read(
        self, trees: Sequence[TokenTree], cache: KVCache, placements: Sequence[Placement]
    ) -> None:
        """Writes the keys of tokens that nothing is asked of."""
        with self._seeing(trees, cache, placements, (), None) as (nodes, positions, glimpse):
            self._head.head.model.remember(
                self._head.embed(nodes.ids),
                nodes.positions,
                nodes.attend,
                positions,
                glimpse,
                only=_Writing(cache),
            )

    @contextmanager
    def _seeing(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        written: Sequence[int],
        ids: Tensor | None,
    ) -> Iterator[tuple[NewNodes, Tensor, CacheGlimpse]]:
        """Within it, one forward; with the target's positions (planes, batch, nodes) of its
        nodes."""
        head = self._head
        sights = [self._sights[placement.row] for placement in placements]
        done = list(written) or [0] * len(trees)
        borders = []
        for tree, placement, old, sight in zip(trees, placements, done, sights, strict=True):
            first = cache.length(placement.row) + placement.position_offsets[0]
            places = first + np.array(tree.depths[old:])
            borders.append(places.clip(1, sight.committed))
        with writing_nodes(
            trees,
            cache,
            placements,
            written=written,
            ids=ids,
            reaches=head.reaches,
            device=head.device,
        ) as nodes:
            offsets = np.array([sight.position_offsets for sight in sights]).T  # (planes, batch)
            positions = nodes.positions + upload(offsets.copy(), head.device).unsqueeze(-1)
            rows = [sight.row for sight in sights]
            glimpse = CacheGlimpse(self._target_cache, head.target_layers, rows, borders)
            with head.quick():
                yield nodes, positions, glimpse


class _Writing:
    """Attends to nothing."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def __call__(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float
    ) -> Tensor:
        self._cache.flat_layers[layer].update(keys, values)
        return query.transpose(1, 2)
