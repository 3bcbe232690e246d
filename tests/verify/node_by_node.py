"""The rules that divide by q, one node after the other in plain numbers: an oracle.

They are what the papers write down. A row that samples, of the engine, is their chooser.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.row import Row
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify import Odds, Rule


def probabilities(row: Row, logits: Tensor, ahead: Sequence[int] = ()) -> Tensor:
    return torch.softmax(row.sampler.process(logits, ahead).double(), dim=-1)


def take(row: Row, token: int) -> int:
    row.take(token, Odds((), int))
    return token


def draw(row: Row, p: Tensor) -> int:
    return take(row, row.sampler.pick(p.log()))


def normalised(p: Tensor) -> Tensor:
    return p / float(p.sum())


def recursive(tree: TokenTree, logits: Tensor, row: Row) -> Verdict:
    """Sequoia, arXiv 2402.12374 algorithm 2; on a chain arXiv 2211.17192 algorithm 1."""
    assert tree.q is not None
    uniforms, path, tokens = row.uniforms(tree.num_nodes), [0], list[int]()
    while children := tree.children(path[-1]):
        p, q = probabilities(row, logits[path[-1]]), normalised(tree.q[path[-1]].double())
        for child in children:
            token = tree.tokens[child]
            if uniforms[child] < min(float(p[token]) / float(q[token]), 1.0):
                tokens.append(take(row, token))
                break
            rest = (p - q).clamp_min(0.0)
            p = normalised(rest) if float(rest.sum()) > 0.0 else p
            q = q.clone()
            q[token] = 0.0
            q = normalised(q) if float(q.sum()) > 0.0 else q
        else:
            return Verdict(tuple(path), (*tokens, draw(row, p)))
        if row.is_done:
            return Verdict(tuple(path), tuple(tokens))
        path.append(child)
    return Verdict(tuple(path), (*tokens, row.choose(logits[path[-1]])))


def block(tree: TokenTree, logits: Tensor, row: Row) -> Verdict:
    """arXiv 2403.10444 algorithm 2."""
    assert tree.q is not None
    drafted, uniforms = tree.tokens[1:], row.uniforms(tree.num_nodes)
    p = [probabilities(row, logits[n], drafted[:n]) for n in range(tree.num_nodes)]
    q = [normalised(row_of_q.double()) for row_of_q in tree.q[:-1]]
    length, joint, rest = 0, 1.0, (p[0] - q[0]).clamp_min(0.0)
    for i, token in enumerate(drafted, start=1):
        joint = min(joint * float(p[i - 1][token]) / float(q[i - 1][token]), 1.0)
        following, kept = p[i], joint
        if i < len(drafted):
            following = (joint * p[i] - q[i]).clamp_min(0.0)
            left = float(following.sum())
            kept = left / (left + 1.0 - joint) if left > 0.0 else 0.0
        if uniforms[i] < kept:
            length, rest = i, following
    tokens = list[int]()
    for token in drafted[:length]:
        tokens.append(take(row, token))
        if row.is_done:
            return Verdict(tuple(range(len(tokens))), tuple(tokens))
    tokens.append(draw(row, rest if float(rest.sum()) > 0.0 else p[length]))
    return Verdict(tuple(range(len(tokens))), tuple(tokens))


ORACLES = {
    "speculative": Rule(recursive, needs_q=True),  # type: ignore[arg-type]
    "recursive": Rule(recursive, needs_q=True),  # type: ignore[arg-type]
    "block": Rule(block, needs_q=True),  # type: ignore[arg-type]
}
