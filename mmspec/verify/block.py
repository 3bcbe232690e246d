"""Block verification on chains: Sun et al., arXiv 2403.10444 algorithm 2."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.coupled import coupled
from mmspec.verify.drawn import drawn_from, exact


class Block(NamedTuple):
    """How much of a chain was accepted."""

    length: int  # drafted tokens
    residual: Tensor  # (vocab,) what the token after them is sampled from; need not sum to 1


def accept_block(
    p: Tensor, q: Tensor, drafted: Sequence[int], *, uniforms: Sequence[float]
) -> Block:
    """The longest accepted beginning of the chain `drafted` (depth,), whose i-th token was drawn
    from `q[i]` (depth, vocab). `p` (depth + 1, vocab) is the target's; both float64, rows sum to 1.
    `uniforms` (depth,) are eta_1 to eta_depth, independent of the draws.

    Accepts no less than one token after the other does, as a coin that was lost early may be made
    good by tokens that the target likes better than the drafter.
    """
    length, rest = 0, _rest(p[0], q[0], 1.0)
    joint = 1.0  # p_i of the paper: probability that the first i tokens are worth keeping
    for i, (token, uniform) in enumerate(zip(drafted, uniforms, strict=True), start=1):
        joint = min(joint * float(p[i - 1, token]) / float(q[i - 1, token]), 1.0)
        if i == len(drafted):
            following, kept = p[i], joint
        else:
            following = _rest(p[i], q[i], joint)
            kept = _share(float(following.sum()), 1.0 - joint)
        if uniform < kept:
            length, rest = i, following
    # Nothing is left only where p = q but for rounding.
    return Block(length, rest if float(rest.sum()) > 0.0 else p[length])


def _rest(p: Tensor, q: Tensor, joint: float) -> Tensor:
    return (joint * p - q).clamp_min(0.0)


def _share(rest: float, lost: float) -> float:
    """h_i = rest / (rest + 1 - p_i). Where both are 0 the rest of the block is kept anyway."""
    return rest / (rest + lost) if rest > 0.0 else 0.0


def block(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """Accepts the longest beginning of a chain that its joint probabilities allow. `logits`
    (nodes, vocab). Looks at the target's distribution at every node before it chooses: the
    request's processors may depend on the tokens alone.

    Keeps the target's distribution, not the seed's own text. A greedy request is the greedy walk,
    which takes any tree. Raises ConfigError for a tree that is no chain or was not drawn, and for
    processors that may keep state.
    """
    if row.is_greedy or tree.num_nodes == 1:
        return coupled(tree, logits, row)
    q = exact(drawn_from(tree, logits, rule="block", only_chains=True)[:-1])
    drafted = tree.tokens[1:]
    p = torch.stack([row.probabilities(logits[n], drafted[:n]) for n in range(tree.num_nodes)])
    found = accept_block(p, q, drafted, uniforms=row.uniforms(tree.num_nodes)[1:])
    tokens = list[int]()
    for token in drafted[: found.length]:
        tokens.append(token)
        row.take(token)
        if row.is_done:
            return Verdict(tuple(range(len(tokens))), tuple(tokens))
    tokens.append(row.draw(found.residual))
    row.take(tokens[-1])
    return Verdict(tuple(range(len(tokens))), tuple(tokens))
