"""EagleScorer: scores growing trees by a head that reads a feature beside each token."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from mmspec.drafters.eagle.bound_head import FeatureHead
from mmspec.drafters.eagle.graphs import EagleGraphs
from mmspec.drafters.heads import NewNodes, Reading, writing_nodes
from mmspec.kv import KVCache
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class EagleScorer:
    """For one proposal of some rows: beside any token behind a tree's first ones stands what the
    head has said of its parent. Nothing waits for the device."""

    def __init__(
        self,
        head: FeatureHead,
        features: Tensor,
        counts: Mapping[int, int],
        graphs: EagleGraphs | None = None,
    ) -> None:
        """`features` (tokens, hidden) stand beside the first `counts` tokens of each row's tree,
        node 0 of the growth among them, one row after the other. `graphs`: the head's, where its
        levels are recorded."""
        self._head = head
        self._graphs = graphs
        self._pool = features  # (states, hidden), and behind them what came of each forward
        ends = accumulate(counts.values())
        # By row: where its features lie, and where the states of its written nodes do.
        self._fed = {
            row: range(end - counts[row], end) for row, end in zip(counts, ends, strict=True)
        }
        self._said: dict[int, list[int]] = {row: [] for row in counts}

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
        with (
            torch.no_grad(),
            writing_nodes(
                trees,
                cache,
                placements,
                written=written,
                ids=ids,
                reaches=head.reaches,
                device=head.device,
            ) as nodes,
        ):
            features = self._beside(trees, placements, nodes)
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
        nodes: NewNodes,
    ) -> Tensor:
        """(batch, nodes, hidden) what stands beside the new nodes."""
        places: list[int] = []
        width = max(nodes.counts)
        for placement, tree, count in zip(placements, trees, nodes.counts, strict=True):
            fed, said = self._fed[placement.row], self._said[placement.row]
            own = [
                fed[node] if node < len(fed) else said[tree.parents[node]]
                for node in range(tree.num_nodes - count, tree.num_nodes)
            ]
            places += [*own, *[0] * (width - len(own))]
        there = upload(places, self._pool.device)
        return self._pool.index_select(0, there).unflatten(0, (len(trees), width))


@torch.no_grad()
def read_text(
    head: FeatureHead,
    cache: KVCache,
    row: int,
    ids: Sequence[int],
    features: Tensor,
    places: Tensor,
) -> None:
    """Commits the keys of `ids` behind what the row holds, `features` (tokens, hidden) beside
    them, which stand at `places` (planes, tokens): a prompt, or what came of a text meanwhile."""
    given, *planes = upload(torch.cat([torch.tensor([ids]), places]).unsqueeze(1), head.device)
    positions = planes[0] if len(planes) == 1 else torch.stack(planes)
    with cache.writing([row], [len(ids)]) as plan:
        plan.is_viewed = False
        attend = Reading(cache, plan, head.reaches)
        head.states(given, features.unsqueeze(0), positions, attend)
    cache.commit({row: range(len(ids))})
