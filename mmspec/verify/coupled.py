"""Coupled verification: the text is the target's own sample path, whatever the tree holds.

Drafting with the noise that the target will use (Gumbel coupling): Daliri, Musco, Suresh,
arXiv 2408.07978; Rowan, Phan, Khisti, arXiv 2506.05632.
"""

from collections.abc import Callable

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser


def coupled(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Walks down from node 0: at each node the target chooses; while its token is a child, the
    child is accepted. `logits` (nodes, vocab). Exact for every tree, pruned and merged ones too:
    the choice never looks at the tree."""
    return walk(tree, lambda node: row.choose(logits[node]), lambda: row.is_done)


def walk(tree: TokenTree, choose: Callable[[int], int], is_done: Callable[[], bool]) -> Verdict:
    """The way down to the first choice that is no child, or that ends the text. `choose` gives the
    token after a node, once for each node on the way."""
    path, tokens = [0], []
    while True:
        token = choose(path[-1])
        tokens.append(token)
        child = tree.child(path[-1], token)
        if is_done() or child is None:
            return Verdict(tuple(path), tuple(tokens))
        path.append(child)
