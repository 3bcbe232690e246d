"""Recursive rejection on trees whose children are drawn without replacement: SpecInfer, arXiv
2305.09781 section 4.3; Sequoia, arXiv 2402.12374 algorithm 2."""

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.drawn import refuse_undrawn
from mmspec.verify.rejection import walk


def recursive(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Tests the children of each node in the order they were drawn in, and goes down to the one
    that is accepted. `logits` (nodes, vocab). On a chain it is speculative sampling.

    Keeps the target's distribution, not the seed's own text. Raises ConfigError for a tree that was
    not drawn.
    """
    refuse_undrawn(tree, logits, rule="recursive")
    return walk(tree, logits, row, rule="recursive")
