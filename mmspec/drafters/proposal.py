"""Proposal: what a drafter has said, to be learnt from."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mmspec.calibration import Calibration
from mmspec.drafters.walked import walked
from mmspec.tree import TokenTree

_FIRST = "first"  # the bucket of all first children
_BELIEVED = 0.8  # of them, before anything is known


@dataclass(frozen=True)
class Proposal:
    """A tree, and what counts as alike of its nodes."""

    tree: TokenTree
    buckets: tuple[Hashable, ...]  # (nodes,) None for a node that says nothing

    def teach(self, calibration: Calibration, tokens: Sequence[int]) -> None:
        """Of every child on the way that the target's `tokens` took, whether it was chosen: scored
        or not, for the target has spoken of all of them."""
        tree, buckets = self.tree, self.buckets
        for node, token in walked(tree, tokens):
            children = tree.children(node)
            if children and buckets[children[0]] is not None:
                calibration.observe(_FIRST, tree.tokens[children[0]] == token)
            for child in children:
                if buckets[child] is not None:
                    calibration.observe(buckets[child], tree.tokens[child] == token)


def first_rate(calibration: Calibration) -> float:
    """How often a node's first child was chosen, of those that a proposal has taught."""
    return calibration.rate(_FIRST, _BELIEVED)
