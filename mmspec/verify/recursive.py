"""Recursive rejection on trees whose children are drawn without replacement: SpecInfer, arXiv
2305.09781 section 4.3; Sequoia, arXiv 2402.12374 algorithm 2."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.coupled import coupled
from mmspec.verify.drawn import drawn_from, exact
from mmspec.verify.speculative import accepts, residual


class Selection(NamedTuple):
    """Which of a node's children was accepted."""

    child: int | None  # in the order they were drawn in; None: none of them
    residual: Tensor  # (vocab,) what is left of p; sampled from if none was


def select(p: Tensor, q: Tensor, drafted: Sequence[int], *, uniforms: Sequence[float]) -> Selection:
    """Tests the tokens `drafted`, drawn from `q` one after the other without replacement, against
    the target's `p`; both (vocab,) float64, sums 1. One of `uniforms` for each.

    After each rejection p <- norm(max(p - q, 0)), and q <- q without the rejected token,
    renormalised: what the next token was drawn from. So each test is exact given those before it.
    """
    for index, (token, uniform) in enumerate(zip(drafted, uniforms, strict=True)):
        if accepts(p, q, token, uniform=uniform):
            return Selection(index, p)
        p, q = residual(p, q), without(q, token)
    return Selection(None, p)


def without(q: Tensor, token: int) -> Tensor:
    """(vocab,) `q` given that `token` is not drawn; zeros if nothing else could be."""
    rest = q.clone()
    rest[token] = 0.0
    total = float(rest.sum())
    return rest / total if total > 0.0 else rest


def recursive(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Tests the children of each node in the order they were drawn in, and goes down to the one
    that is accepted. `logits` (nodes, vocab). On a chain it is speculative sampling.

    Keeps the target's distribution, not the seed's own text. A greedy request is the greedy walk,
    which takes any tree. Raises ConfigError for a tree that was not drawn.
    """
    if row.is_greedy or tree.num_nodes == 1:
        return coupled(tree, logits, row)
    q = drawn_from(tree, logits, rule="recursive")
    uniforms = row.uniforms(tree.num_nodes)
    path, tokens = [0], list[int]()
    while children := tree.children(path[-1]):
        drafted = [tree.tokens[child] for child in children]
        selection = select(
            row.probabilities(logits[path[-1]]),
            exact(q[path[-1]]),
            drafted,
            uniforms=[uniforms[child] for child in children],
        )
        child = selection.child
        tokens.append(row.draw(selection.residual) if child is None else drafted[child])
        row.take(tokens[-1])
        if row.is_done or child is None:
            return Verdict(tuple(path), tuple(tokens))
        path.append(children[child])
    tokens.append(row.choose(logits[path[-1]]))
    return Verdict(tuple(path), tuple(tokens))
