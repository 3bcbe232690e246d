"""Drawn trees: what the rules that divide by q ask of a tree before they walk down it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.tree import TokenTree
from mmspec.verify.weighing import Nodes


def refuse_undrawn(
    tree: TokenTree, logits: Tensor, *, rule: str, only_chains: bool = False
) -> None:
    """Raises ConfigError for a tree with drafted nodes whose form `rule` is not exact for: one
    without q for all of `logits` (nodes, vocab), or no chain where it must be one."""
    got = _got(tree, rule)
    if only_chains and not tree.is_chain:
        raise ConfigError(
            f"{got} that is not a chain; expected one token a node: let the drafter draw one, take "
            f"verifier=recursive, {_INSTEAD}"
        )
    if tree.q is None:
        raise ConfigError(
            f"{got} without q, the probabilities that they were drawn with. The drafter does not "
            "draw, or nodes were left out or joined by what was drawn (a model that scores chains "
            f"only takes no trees here): take a drafter that draws, or one that fits, {_INSTEAD}"
        )
    if tree.q.shape != logits.shape:
        raise ConfigError(
            f"{got} with q of shape {tuple(tree.q.shape)}; expected the target's vocabulary, "
            f"{tuple(logits.shape)}: scatter the drafter's probabilities into it, {_INSTEAD}"
        )


def fair(chances: Iterable[float], tree: TokenTree, *, rule: str) -> Iterator[float]:
    """The chances of some nodes' children. Raises ConfigError for one that is NaN: q cannot be what
    the tokens were drawn from. What it cannot tell is whether a node was left out for the token
    that was drawn for it."""
    for chance in chances:
        if chance != chance:
            raise ConfigError(_unfair(tree, rule))
        yield chance


def drawn_from(nodes: Nodes) -> tuple[Tensor, Tensor]:
    """q (nodes, vocab) in float64, each row's sum 1 as far as it can tell; and (nodes, most
    children) bool, whether it can be what a child was drawn from."""
    assert nodes.q is not None, "the tree was not refused"
    q = nodes.q.double()
    sums = q.sum(-1, keepdim=True)
    rounding = max(torch.finfo(nodes.q.dtype).eps, 1e-3)
    is_fair = ((sums - 1.0).abs() < rounding) & (q >= 0.0).all(-1, keepdim=True)
    return q / sums, is_fair & (q.gather(1, nodes.tokens) > 0.0)


_INSTEAD = "or take verifier=coupled, which is exact for any tree"


def _got(tree: TokenTree, rule: str) -> str:
    return f"verifier={rule} got a tree of {tree.num_nodes - 1} drafted nodes"


def _unfair(tree: TokenTree, rule: str) -> str:
    assert tree.q is not None, "the tree was not refused"
    q = tree.q.cpu()[list(tree.parents[1:])]  # (drafted nodes, vocab)
    sums, drawn = q.sum(-1), q[range(len(q)), list(tree.tokens[1:])]
    return (
        f"{_got(tree, rule)} whose q cannot be what they were drawn from: rows sum to "
        f"{float(sums.min()):.4g} to {float(sums.max()):.4g}, the drawn tokens' least "
        f"probability is {float(drawn.min()):.3g}; expected probabilities after the drafter's "
        f"own warping, {_INSTEAD}"
    )
