"""EagleScorer: scores growing trees by a head that reads a feature beside each token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.drafters.eagle.bound_head import BoundHead
from mmspec.drafters.eagle.graphs import EagleGraphs
from mmspec.drafters.heads import NewNodes, Reading, writing_nodes
from mmspec.kv import KVCache
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class EagleScorer:
    """For one proposal of some rows: what stands beside a tree's first tokens is fed, the feature
    beside any other is what the head has said of its parent. Nothing waits for the device."""

    def __init__(self, head: BoundHead, graphs: EagleGraphs | None = None) -> None:
        """`graphs`: the head's, where its levels are recorded."""
        self._head = head
        self._graphs = graphs
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
        head, pool = self._head, self._pool
        assert pool is not None, "no row was fed"
        done = list(written) or [0] * len(trees)
        with (
            torch.no_grad(),
            writing_nodes(
                trees,
                cache,
                placements,
                written=done,
                ids=ids,
                reaches=head.reaches,
                device=head.device,
            ) as nodes,
        ):
            features = self._beside(trees, placements, done, nodes)
            computed = None if self._graphs is None else self._graphs.compute(nodes, features)
            if computed is None:
                states = head.states(nodes.ids, features, nodes.positions, nodes.attend)
                computed = states, head.logits(nodes.leaves_of(states.read))
        states, logits = computed
        logits = head.over_target(logits)
        width = features.shape[1]
        for index, (placement, count) in enumerate(zip(placements, nodes.counts, strict=True)):
            first = pool.shape[0] + index * width
            self._said[placement.row] += range(first, first + count)
        self._pool = torch.cat([pool, states.features.flatten(0, 1)])
        return [Scores(own) for own in nodes.per_row(logits)]

    def _beside(
        self,
        trees: Sequence[TokenTree],
        placements: Sequence[Placement],
        written: Sequence[int],
        nodes: NewNodes,
    ) -> Tensor:
        """(batch, nodes, hidden) what stands beside the new nodes."""
        assert self._pool is not None, "no row was fed"
        places: list[int] = []
        width = max(nodes.counts)
        for placement, tree, old in zip(placements, trees, written, strict=True):
            fed, said = self._fed[placement.row], self._said[placement.row]
            own = [
                fed[node] if node < len(fed) else said[tree.parents[node]]
                for node in range(old, tree.num_nodes)
            ]
            places += [*own, *[0] * (width - len(own))]
        there = upload(places, self._pool.device)
        return self._pool.index_select(0, there).unflatten(0, (len(trees), width))


@torch.no_grad()
def read_text(
    head: BoundHead,
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
