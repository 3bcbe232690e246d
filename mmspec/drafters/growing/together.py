"""Growing trees: all rows together, one forward of the draft model a level."""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.growth import Growth
from mmspec.kv import KVCache
from mmspec.reads import read
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree


class Scorer(Protocol):
    """Who scores trees that grow: a Target, or a trained head."""

    def score(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        *,
        written: Sequence[int] = (),
        ids: Tensor | None = None,
    ) -> list[Scores]:
        """As `Target.score`, but that logits are needed of the nodes without children alone."""


def grow(model: Scorer, cache: KVCache, growths: Sequence[Growth], *, cost: ForwardCost) -> None:
    """Grows all trees to their end; rows that have ended drop out. Tells `cost` what it took.

    One wait for the device a level; where all trees are set, one after the last: the next forward
    takes its tokens from where they were found.
    """
    begun, ids = time.perf_counter(), None
    is_set = all(growth.branching.is_set for growth in growths)
    while growing := [growth for growth in growths if growth.is_growing]:
        scores = model.score(
            [growth.written for growth in growing],
            cache,
            [growth.placement for growth in growing],
            written=[growth.num_written for growth in growing],
            ids=ids,
        )
        newest = [g.find(score.logits).tokens for g, score in zip(growing, scores, strict=True)]
        if is_set:
            for growth in growing:
                growth.guess()
            going = [t for g, t in zip(growing, newest, strict=True) if g.is_growing]
            ids = torch.cat(going) if going else None
        else:
            _settle(growing)
    if is_set:
        _settle(growths)
    cost.observe(time.perf_counter() - begun, sum(growth.depth for growth in growths))


def _settle(growths: Sequence[Growth]) -> None:
    known = iter(read(*(tensor for growth in growths for tensor in growth.unsettled)))
    for growth in growths:
        growth.settle(known)
