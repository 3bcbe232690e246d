"""How often a head says what the text says next: by depth, and in tokens a step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.training.heads.batch import Batch
from mmspec.training.heads.method import HeadMethod


@dataclass(frozen=True)
class Acceptance:
    """Over held-out texts. Where these are the target's own greedy answers, `tokens_a_step` is
    what a chain of drafts gets in greedy decoding."""

    tokens: int  # that were to be said
    top_1: tuple[float, ...]  # by depth: share of tokens that are the head's best
    top_k: tuple[float, ...]  # by depth: share of tokens among its `num_best` best
    num_best: int
    tokens_a_step: float  # of a chain of all depths, the target's own token among them


def evaluate(method: HeadMethod, batches: Iterable[Batch], *, top_k: int) -> Acceptance:
    """`batches` are read one after the other."""
    hits, among, counts = [torch.zeros(method.depth, dtype=torch.long) for _ in range(3)]
    tokens = steps = 0
    with torch.no_grad():
        for batch in batches:
            drafts = method.drafts(batch, top_k=top_k)
            found = [_hits(drafts[depth], batch, depth) for depth in range(method.depth)]
            for depth, (is_first, is_among, is_asked) in enumerate(found):
                hits[depth] += is_first.sum().cpu()
                among[depth] += is_among.sum().cpu()
                counts[depth] += is_asked.sum().cpu()
            firsts = torch.stack([is_first for is_first, _, _ in found]).cpu()
            said, called = _walk(firsts, batch.learned.cpu())
            tokens, steps = tokens + said, steps + called
    shares = [(part / counts.clamp(min=1)).tolist() for part in (hits, among)]
    return Acceptance(
        int(counts[0]),
        tuple(shares[0]),
        tuple(shares[1]),
        top_k,
        tokens / steps if steps else 1.0,
    )


def _hits(drafts: Tensor, batch: Batch, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """(is the best one right, is one of them, is one asked for), (batch, seq) each, for drafts
    (batch, seq, k) of tokens depth + 2 further on."""
    ids, asked = batch.ahead(depth + 2)
    right = (drafts == ids.unsqueeze(-1)) & asked.unsqueeze(-1)
    return right[..., 0], right.any(-1), asked


def _walk(firsts: Tensor, learned: Tensor) -> tuple[int, int]:
    """(tokens, steps) of greedy decoding with chains: `firsts` (depth, batch, seq) as `_hits` finds
    them, `learned` (batch, seq). The first token of an answer is no step's."""
    tokens = steps = 0
    is_first: list[list[list[bool]]] = firsts.tolist()
    for row, asked in enumerate(learned.tolist()):
        for start, stop in _runs(asked):
            at = start  # node 0: chosen, not read
            while at + 1 < stop:
                accepted = 0
                while (
                    accepted < len(is_first)
                    and at + 1 + accepted < stop
                    and at > 0
                    and is_first[accepted][row][at - 1]
                ):
                    accepted += 1
                tokens += min(accepted + 1, stop - at - 1)
                at += accepted + 1
                steps += 1
    return tokens, steps


def _runs(asked: Sequence[bool]) -> list[tuple[int, int]]:
    """[start, stop) of each run of learned tokens."""
    edges = [
        i
        for i in range(len(asked) + 1)
        if (i > 0 and asked[i - 1]) != (i < len(asked) and asked[i])
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
