"""FeatureScorer: scores growing trees by a head that reads a feature beside each token."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmspec.attention import Reach
from mmspec.drafters.heads.attention import Attend, Reading
from mmspec.drafters.heads.nodes import NewNodes, writing_nodes
from mmspec.kv import KVCache
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class HeadStates(NamedTuple):
    """What a head says of some tokens, each (batch, seq, hidden)."""

    features: Tensor  # that their children read
    read: Tensor  # that logits are made of


class FeatureHead(Protocol):
    """A head that has all it needs: its weights, and the target's ends where it borrows them."""

    @property
    def reaches(self) -> Sequence[Reach]:
        """Of each of its layers."""

    @property
    def device(self) -> torch.device:
        """Where it is computed."""

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: Attend
    ) -> HeadStates:
        """`ids` and `positions` (batch, seq) int64, `features` (batch, seq, hidden)"""

    def logits(self, read: Tensor) -> Tensor:
        """(nodes, hidden) -> (nodes, vocab) over the target's vocabulary"""


class FeatureScorer:
    """For one proposal of some rows: what stands beside a tree's first tokens is fed, the feature
    beside any other is what the head has said of its parent. Nothing waits for the device."""

    def __init__(self, head: FeatureHead) -> None:
        self._head = head
        self._pool: Tensor | None = None  # (states, hidden): fed, then what came of each forward
        self._fed: dict[int, range] = {}  # row -> where its features lie
        self._said: dict[int, list[int]] = {}  # row -> where the states of its written nodes lie

    def feed(self, row: int, features: Tensor) -> None:
        """`features` (tokens, hidden) beside the first tokens of the row's tree, node 0 of the
        growth among them; once for each row."""
        start = 0 if self._pool is None else self._pool.shape[0]
        self._fed[row] = range(start, start + features.shape[0])
        self._said[row] = []
        self._pool = features if self._pool is None else torch.cat([self._pool, features])

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
        with torch.no_grad():
            nodes, states = self._forward(trees, cache, placements, written, ids)
            logits = self._head.logits(nodes.leaves_of(states.read))
        return [Scores(own) for own in nodes.per_row(logits)]

    @torch.no_grad()
    def _forward(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        written: Sequence[int],
        ids: Tensor | None,
    ) -> tuple[NewNodes, HeadStates]:
        head, pool = self._head, self._pool
        assert pool is not None, "no row was fed"
        with writing_nodes(
            trees,
            cache,
            placements,
            written=written,
            ids=ids,
            reaches=head.reaches,
            device=head.device,
        ) as nodes:
            width = nodes.ids.shape[1]
            beside: list[int] = []
            done = list(written) or [0] * len(trees)
            for placement, tree, old in zip(placements, trees, done, strict=True):
                fed, said = self._fed[placement.row], self._said[placement.row]
                own = [
                    fed[node] if node < len(fed) else said[tree.parents[node]]
                    for node in range(old, tree.num_nodes)
                ]
                beside += [*own, *[0] * (width - len(own))]
            places = upload(beside, pool.device)
            features = pool.index_select(0, places).unflatten(0, (len(trees), width))
            states = head.states(nodes.ids, features, nodes.positions, nodes.attend)
        for index, (placement, count) in enumerate(zip(placements, nodes.counts, strict=True)):
            first = pool.shape[0] + index * width
            self._said[placement.row] += range(first, first + count)
        self._pool = torch.cat([pool, states.features.flatten(0, 1)])
        return nodes, states


@torch.no_grad()
def read_text(
    head: FeatureHead,
    cache: KVCache,
    placement: Placement,
    ids: Sequence[int],
    features: Tensor,
) -> None:
    """Commits the keys of `ids` behind what the row holds, `features` (tokens, hidden) beside
    them: a prompt, or what came of a text meanwhile."""
    first = cache.length(placement.row) + placement.position_offsets[0]
    told = torch.stack([torch.tensor(ids), first + torch.arange(len(ids))]).unsqueeze(1)
    given, positions = upload(told, head.device)
    with cache.writing([placement.row], [len(ids)]) as plan:
        plan.is_viewed = False
        attend = Reading(cache, plan, head.reaches)
        head.states(given, features.unsqueeze(0), positions, attend)
    cache.commit({placement.row: range(len(ids))})
