"""Drawn trees: what the rules that divide by q ask of a tree before they walk down it."""

from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.tree import TokenTree


def drawn_from(tree: TokenTree, logits: Tensor, *, rule: str, only_chains: bool = False) -> Tensor:
    """The q (nodes, vocab) of a tree with drafted nodes, on the device of `logits` (nodes, vocab).

    Raises ConfigError for a tree that `rule` is not exact for, as far as the tree itself tells: one
    without q, no chain where it must be one, a q that cannot be what the tokens were drawn from.
    What it cannot tell is whether a node was left out for the token that was drawn for it.
    """
    got = f"verifier={rule} got a tree of {tree.num_nodes - 1} drafted nodes"
    instead = "or take verifier=coupled, which is exact for any tree"
    if only_chains and not tree.is_chain:
        raise ConfigError(
            f"{got} that is not a chain; expected one token a node: let the drafter draw one, take "
            f"verifier=recursive, {instead}"
        )
    if tree.q is None:
        raise ConfigError(
            f"{got} without q, the probabilities that they were drawn with. The drafter does not "
            "draw, or nodes were left out or joined by what was drawn (a model that scores chains "
            f"only takes no trees here): take a drafter that draws, or one that fits, {instead}"
        )
    if tree.q.shape != logits.shape:
        raise ConfigError(
            f"{got} with q of shape {tuple(tree.q.shape)}; expected the target's vocabulary, "
            f"{tuple(logits.shape)}: scatter the drafter's probabilities into it, {instead}"
        )
    q = tree.q.to(logits.device)
    parents = sorted(set(tree.parents[1:]))
    sums = q[parents].sum(-1)
    drawn = q[list(tree.parents[1:]), list(tree.tokens[1:])]
    if not (abs(sums - 1.0) < 1e-3).all() or not (drawn > 0).all() or not (q[parents] >= 0).all():
        raise ConfigError(
            f"{got} whose q cannot be what they were drawn from: rows sum to "
            f"{float(sums.min()):.4g} to {float(sums.max()):.4g}, the drawn tokens' least "
            f"probability is {float(drawn.min()):.3g}; expected probabilities after the drafter's "
            f"own warping, {instead}"
        )
    return q


def exact(q: Tensor) -> Tensor:
    """Probabilities (..., vocab) in float64 that sum to 1 as far as it can tell."""
    q = q.double()
    return q / q.sum(-1, keepdim=True)
