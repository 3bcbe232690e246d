"""Typical acceptance: LOSSY, the texts are not distributed as the target's. Medusa, arXiv
2401.10774 section 2.3.1."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, prod

import torch
from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.coupled import coupled


def threshold(p: Tensor, *, epsilon: float, delta: float) -> float:
    """min(epsilon, delta exp(-H(p))): the target's `p` (vocab,) accepts tokens that are likelier
    than this. The more it hesitates, the less it asks."""
    entropy = float(torch.special.entr(p).sum())
    return min(epsilon, delta * exp(-entropy))


@dataclass(frozen=True)
class Typical:
    """LOSSY: accepts every drafted token that the target finds likely enough, however seldom it
    would choose it. Takes any tree. A greedy request is exact: the greedy walk.

    Of several accepted paths the longest is taken, then the likelier. The token after it is the
    target's own choice. The request's processors may depend on the tokens alone (ConfigError).
    """

    epsilon: float = 0.09  # no token likelier than this is rejected
    delta: float = 0.3

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"typical: {name}={value!r}: expected a number in (0, 1]")

    def __call__(self, tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
        """`logits` (nodes, vocab)."""
        if row.is_greedy:
            return coupled(tree, logits, row)
        path, tokens, p = [0], list[int](), self._accepted(tree, logits, row)
        best = max(p, key=lambda node: (tree.depths[node], _likelihood(tree, node, p)))
        for node in tree.path_to(best)[1:]:
            tokens.append(tree.tokens[node])
            row.take(tokens[-1])
            if row.is_done:
                return Verdict(tuple(path), tuple(tokens))
            path.append(node)
        tokens.append(row.draw(p[best]))
        row.take(tokens[-1])
        return Verdict(tuple(path), tuple(tokens))

    def _accepted(self, tree: TokenTree, logits: Tensor, row: Chooser) -> dict[int, Tensor]:
        """The nodes whose whole path is typical, each with what the target says after it."""
        accepted, found = {0}, dict[int, Tensor]()
        for node in range(tree.num_nodes):
            if node not in accepted:
                continue
            ahead = [tree.tokens[above] for above in tree.path_to(node)[1:]]
            p = found[node] = row.probabilities(logits[node], ahead)
            least = threshold(p, epsilon=self.epsilon, delta=self.delta)
            accepted |= {c for c in tree.children(node) if float(p[tree.tokens[c]]) > least}
        return found


def _likelihood(tree: TokenTree, node: int, p: Mapping[int, Tensor]) -> float:
    return prod(float(p[tree.parents[n]][tree.tokens[n]]) for n in tree.path_to(node)[1:])
