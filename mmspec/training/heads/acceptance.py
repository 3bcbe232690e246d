"""How often a head says what the text says next: by depth, and in tokens a step."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

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
    counts = torch.zeros(method.depth, 3, dtype=torch.long)  # as `_hits`
    tokens = steps = 0
    with torch.no_grad():
        for batch in batches:
            drafts = method.drafts(batch, top_k=top_k)
            hits = torch.stack([_hits(own, batch, depth) for depth, own in enumerate(drafts)]).cpu()
            counts += hits.sum((2, 3))
            said, called = _walk(hits[:, 0], batch.learned.cpu())
            tokens, steps = tokens + said, steps + called
    first, among, asked = counts.unbind(1)
    return Acceptance(
        int(asked[0]),
        tuple((first / asked.clamp(min=1)).tolist()),
        tuple((among / asked.clamp(min=1)).tolist()),
        top_k,
        tokens / steps if steps else 1.0,
    )


def _hits(drafts: Tensor, batch: Batch, depth: int) -> Tensor:
    """(3, batch, seq): is the best one right, is one of them, is one asked for; `drafts`
    (batch, seq, k) of tokens depth + 2 further on."""
    ids, asked = batch.ahead(depth + 2)
    right = (drafts == ids.unsqueeze(-1)) & asked.unsqueeze(-1)
    return torch.stack([right[..., 0], right.any(-1), asked])


def _walk(firsts: Tensor, learned: Tensor) -> tuple[int, int]:
    """(tokens, steps) of greedy decoding with chains: `firsts` (depth, batch, seq) as `_hits` finds
    them, `learned` (batch, seq). The first token of an answer is no step's."""
    tokens = steps = 0
    accepted = firsts.long().cumprod(0).sum(0).tolist()  # of the chain that is drafted at a place
    for row, asked in enumerate(learned.tolist()):
        for is_asked, run in groupby(range(len(asked)), asked.__getitem__):
            at, *rest = run  # node 0: chosen, not read
            end = at + len(rest)
            while is_asked and at < end:
                new = min(accepted[row][at - 1] + 1 if at else 1, end - at)
                tokens, steps, at = tokens + new, steps + 1, at + new
    return tokens, steps
