"""Typical acceptance: LOSSY, the texts are not distributed as the target's. Medusa, arXiv
2401.10774 section 2.3.1."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.rule import Rule
from mmspec.verify.weighing import Nodes, Odds, Weighed


def threshold(p: Tensor, *, epsilon: float, delta: float) -> Tensor:
    """min(epsilon, delta exp(-H(p))), (..., 1): the target's `p` (..., vocab) accepts tokens that
    are likelier than this. The more it hesitates, the less it asks."""
    entropy = torch.special.entr(p).sum(-1, keepdim=True)
    return (delta * torch.exp(-entropy)).clamp(max=epsilon)


@dataclass(frozen=True)
class Typical:
    """LOSSY: accepts every drafted token that the target finds likely enough, however seldom it
    would choose it. Takes any tree.

    Of several accepted paths the longest is taken, then the likelier. The token after it is the
    target's own choice. The request's processors may depend on the tokens alone (ConfigError).
    """

    epsilon: float = 0.09  # no token likelier than this is rejected
    delta: float = 0.3

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("delta", self.delta)):
            if not 0.0 < value <= 1.0:
                raise ConfigError(f"typical: {name}={value!r}: expected a number in (0, 1]")

    @property
    def rule(self) -> Rule:
        """As `Engine(verifier=...)` takes it."""
        return Rule(self, self.weigh, is_lossless=False)

    def weigh(self, nodes: Nodes) -> Weighed:
        """A child's chance is its probability, where that is typical, else 0."""
        p = nodes.p
        own = p.gather(1, nodes.tokens)
        least = threshold(p, epsilon=self.epsilon, delta=self.delta)
        return Weighed(torch.where(own > least, own, 0.0), p.log())

    def __call__(self, tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
        """`logits` (nodes, vocab)."""
        likely, odds = {0: 1.0}, dict[int, Odds]()  # of the nodes whose whole path is typical
        for node in range(tree.num_nodes):
            if node in likely:
                (odds[node],) = row.weigh(self.weigh, tree, logits, [node], at=0)
                children = zip(tree.children(node), odds[node].chances, strict=True)
                likely |= {child: likely[node] * own for child, own in children if own > 0.0}
        best = max(odds, key=lambda node: (tree.depths[node], likely[node]))
        path, tokens = tree.path_to(best), list[int]()
        for above, node in pairwise(path):
            tokens.append(tree.tokens[node])
            row.take(tokens[-1], odds[above])
            if row.is_done:
                return Verdict(path[: len(tokens)], tuple(tokens))
        tokens.append(odds[best].draw())
        row.take(tokens[-1], odds[best])
        return Verdict(path, tuple(tokens))
