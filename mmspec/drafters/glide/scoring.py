"""GlideScorer: scores growing trees by a head that sees the target's cache."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.drafters.glide.bound_head import HeadForTarget
from mmspec.drafters.glide.glimpse import CacheGlimpse, Glance, glimpse_call
from mmspec.drafters.glide.graphs import GlideGraphs
from mmspec.drafters.heads import NewNodes, writing_nodes
from mmspec.kv import KVCache
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree
from mmspec.uploads import upload


@dataclass(frozen=True)
class Sight:
    """What one row's draft sees of the target."""

    row: int  # of the target's cache
    committed: int  # tokens that it holds
    position_offsets: tuple[int, ...]  # (planes,) position of a token there = its index + offset


class GlideScorer:
    """For one proposal of some rows. Nothing waits for the device."""

    def __init__(
        self,
        head: HeadForTarget,
        target_cache: KVCache,
        sights: Mapping[int, Sight],
        graphs: GlideGraphs | None = None,
    ) -> None:
        """`sights` by the rows of the head's own cache, whose placements have one offset each: the
        index in the text of the row's first token. `graphs`: the head's, where its levels are
        recorded."""
        self._head = head
        self._target_cache = target_cache
        self._sights = sights
        self._graphs = graphs

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
        with self._seeing(trees, cache, placements, written, ids) as (nodes, glance):
            logits = None if self._graphs is None else self._graphs.compute(nodes, glance)
            if logits is None:
                place = upload(glance.positions, head.device), self._glimpse(glance)
                states = head.states(nodes.ids, nodes.positions, nodes.attend, *place)
                logits = head.logits(nodes.leaves_of(states))
        return [Scores(own) for own in nodes.per_row(logits)]

    @torch.no_grad()
    def read(
        self, trees: Sequence[TokenTree], cache: KVCache, placements: Sequence[Placement]
    ) -> None:
        """Writes the keys of tokens that nothing is asked of."""
        head = self._head
        with self._seeing(trees, cache, placements, (), None) as (nodes, glance), head.quick():
            keys, values = head.head.model.remember(
                head.embed(nodes.ids),
                nodes.positions,
                nodes.attend,
                upload(glance.positions, head.device),
                self._glimpse(glance),
            )
            cache.flat_layers[-1].update(keys, values)

    def _glimpse(self, glance: Glance) -> CacheGlimpse:
        layers = [glance.cache.flat_layers[index] for index in self._head.target_layers]
        return CacheGlimpse(layers, glance.call)

    @contextmanager
    def _seeing(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        written: Sequence[int],
        ids: Tensor | None,
    ) -> Iterator[tuple[NewNodes, Glance]]:
        """Within it, one forward of the head."""
        head, target_cache = self._head, self._target_cache
        sights = [self._sights[placement.row] for placement in placements]
        with writing_nodes(
            trees,
            cache,
            placements,
            written=written,
            ids=ids,
            reaches=head.reaches,
            device=head.device,
        ) as nodes:
            offsets = torch.tensor([sight.position_offsets for sight in sights])  # (batch, planes)
            positions = nodes.places + offsets.T.unsqueeze(-1)
            rows = [sight.row for sight in sights]
            borders = [
                places[:count].clip(1, sight.committed)
                for places, count, sight in zip(
                    nodes.places.numpy(), nodes.counts, sights, strict=True
                )
            ]
            yield nodes, Glance(target_cache, positions, glimpse_call(target_cache, rows, borders))
