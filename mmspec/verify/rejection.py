"""Rejection: a node's drawn children are tested one after the other, down the tree.

On a chain this is speculative sampling, on a tree recursive rejection.
"""

import torch
from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.drawn import drawn_from, fair
from mmspec.verify.weighing import Nodes, Weighed


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)), (..., vocab); p itself where nothing is left: then p = q but for
    rounding, and nothing is ever rejected."""
    rest = (p - q).clamp_min(0.0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0.0, rest / total, p)


def without(q: Tensor, tokens: Tensor) -> Tensor:
    """`q` (nodes, vocab) given that `tokens` (nodes, 1) are not drawn; NaN where nothing else could
    be, so that nothing was."""
    rest = q.scatter(1, tokens, 0.0)
    return rest / rest.sum(-1, keepdim=True)


def weigh(nodes: Nodes) -> Weighed:
    """A child's chance is min(p / q, 1) of its token: with it the token is kept.

    After each rejection p <- norm(max(p - q, 0)), and q <- q without the rejected token,
    renormalised: what the next token was drawn from. So each test is exact given those before it,
    and what is left of p after the last is drawn from if none was kept.
    """
    p, (q, is_fair) = nodes.p, drawn_from(nodes)
    chances = torch.full_like(nodes.tokens, torch.nan, dtype=torch.float64)
    for rank in range(nodes.tokens.shape[1]):
        token, is_child = nodes.tokens[:, rank : rank + 1], nodes.is_child[:, rank : rank + 1]
        if rank:
            q = without(q, nodes.tokens[:, rank - 1 : rank])
        # p >= q: keep; p < q: keep with probability p / q
        chances[:, rank : rank + 1] = (p.gather(1, token) / q.gather(1, token)).clamp(max=1.0)
        p = torch.where(is_child, residual(p, q), p)
    has_children = nodes.is_child.any(-1, keepdim=True)
    return Weighed(
        torch.where(is_fair, chances, torch.nan),
        torch.where(has_children, p.log(), nodes.scores.double()),  # a leaf's, as they are
    )


def walk(tree: TokenTree, logits: Tensor, row: Chooser, *, rule: str) -> Verdict:
    """Tests the children of each node in the order they were drawn in, and goes down to the one
    that is kept. `logits` (nodes, vocab)."""
    uniforms = row.uniforms(tree.num_nodes)
    path, tokens = [0], list[int]()
    while children := tree.children(path[-1]):
        (odds,) = row.weigh(weigh, tree, logits, path[-1:], at=path[-1])
        tested = zip(children, fair(odds.chances, tree, rule=rule), strict=True)
        kept = next((child for child, chance in tested if uniforms[child] < chance), None)
        tokens.append(odds.draw() if kept is None else tree.tokens[kept])
        row.take(tokens[-1], odds)
        if row.is_done or kept is None:
            return Verdict(tuple(path), tuple(tokens))
        path.append(kept)
    tokens.append(row.choose(logits[path[-1]]))
    return Verdict(tuple(path), tuple(tokens))
