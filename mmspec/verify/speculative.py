"""Speculative sampling on chains: Leviathan et al., arXiv 2211.17192 algorithm 1; Chen et al.,
arXiv 2302.01318 algorithm 2."""

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.drawn import refuse_undrawn
from mmspec.verify.rejection import walk


def speculative(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Accepts a chain's nodes one after the other, until one is rejected. `logits` (nodes, vocab).

    Keeps the target's distribution, not the seed's own text. Raises ConfigError for a tree that is
    no chain or was not drawn.
    """
    refuse_undrawn(tree, logits, rule="speculative", only_chains=True)
    return walk(tree, logits, row, rule="speculative")
