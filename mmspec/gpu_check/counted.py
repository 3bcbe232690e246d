"""CountedForwards: how often, and over how many nodes, a drafter ran its target."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmspec.state import Scores
from mmspec.target import Target
from mmspec.tree import TokenTree


class CountedForwards:
    """Given to a self-drafter as its `forward`: makes of the target one that computes the same."""

    def __init__(self) -> None:
        self.nodes: Counter[int] = Counter()  # nodes computed by a forward -> forwards

    def __call__(self, target: Target) -> Target:
        variant = target.variant()
        own = variant.score

        def score(trees: Sequence[TokenTree], *args: Any, **kwargs: Any) -> list[Scores]:
            written = kwargs.get("written") or [0] * len(trees)
            self.nodes[sum(t.num_nodes for t in trees) - sum(written)] += 1
            return own(trees, *args, **kwargs)

        variant.score = score  # type: ignore[method-assign]
        return variant
