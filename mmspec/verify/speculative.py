"""Speculative sampling on chains: Leviathan et al., arXiv 2211.17192 algorithm 1; Chen et al.,
arXiv 2302.01318 algorithm 2."""

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.coupled import coupled
from mmspec.verify.drawn import drawn_from, exact


def accepts(p: Tensor, q: Tensor, token: int, *, uniform: float) -> bool:
    """Tests `token`, drawn from `q`, against the target's `p`; both (vocab,) float64, sums 1.

    If the token is kept where this is True and else drawn from the residual, the outcome is
    distributed as p, provided that `uniform` is independent of the draw.
    """
    # p >= q: keep; p < q: keep with probability p / q
    return uniform < min(float(p[token]) / float(q[token]), 1.0)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)), (vocab,); p itself where nothing is left: then p = q but for rounding,
    and nothing is ever rejected."""
    rest = (p - q).clamp_min(0.0)
    total = float(rest.sum())
    return rest / total if total > 0.0 else p


def speculative(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Accepts a chain's nodes one after the other, until one is rejected. `logits` (nodes, vocab).

    Keeps the target's distribution, not the seed's own text. A greedy request is the greedy walk,
    which takes any tree. Raises ConfigError for a tree that is no chain or was not drawn.
    """
    if row.is_greedy or tree.num_nodes == 1:
        return coupled(tree, logits, row)
    q = drawn_from(tree, logits, rule="speculative", only_chains=True)
    uniforms = row.uniforms(tree.num_nodes)
    path, tokens = [0], list[int]()
    for node in range(1, tree.num_nodes):
        above, drafted = path[-1], tree.tokens[node]
        p, drawn_q = row.probabilities(logits[above]), exact(q[above])
        is_accepted = accepts(p, drawn_q, drafted, uniform=uniforms[node])
        tokens.append(drafted if is_accepted else row.draw(residual(p, drawn_q)))
        row.take(tokens[-1])
        if row.is_done or not is_accepted:
            return Verdict(tuple(path), tuple(tokens))
        path.append(node)
    tokens.append(row.choose(logits[path[-1]]))
    return Verdict(tuple(path), tuple(tokens))
