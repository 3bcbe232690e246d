"""Drawing: a node's children from a drafter's distribution, for the rules that divide by q."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.noise import Place, gumbel_at


class Drawing(NamedTuple):
    """The children of some nodes, where their logits lie."""

    tokens: Tensor  # (nodes, k) int64, in the order they were drawn in
    rates: Tensor  # (nodes, k) float32, their q; 0 for what was not drawn, as q has no more tokens
    q: Tensor  # (nodes, vocab) float32 probabilities that they were drawn from


def draw_level(logits: Tensor, k: int, places: Sequence[Place]) -> Drawing:
    """Draws `k` tokens for each row of `logits` (nodes, vocab), one after the other without
    replacement, from q = softmax(row). With `k` = 1 that is one sample of q. `places` (nodes,) say
    whose noise it is, each with a stream of its own: no two draws of a text share it, nor one the
    target's or the verifier's. Nothing waits for the device.

    `logits` are warped as the request warps the target's (`DraftGuide.warp`). `k` and whether to
    draw may depend on the path down to the node, never on what is drawn here.

    The largest k of log q + Gumbel noise, from the largest down, are a draw without replacement
    (Gumbel-top-k: Kool, van Hoof, Welling, arXiv 1903.06059).
    """
    scores = logits.float()
    noise = gumbel_at(places, scores.shape[1], device=scores.device)
    q = torch.softmax(scores, dim=-1)
    # A token whose probability underflows is never drawn: the rules could not divide by it.
    drawable = torch.where(q > 0.0, scores + noise, -torch.inf)
    tokens = drawable.topk(min(k, scores.shape[1]), dim=-1).indices
    return Drawing(tokens, q.gather(1, tokens), q)
