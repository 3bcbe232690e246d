"""Drawing: a node's children from a drafter's distribution, for the rules that divide by q."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.noise import DRAFT_STREAM, Place, gumbel_at
from mmspec.reads import read


class Drawing(NamedTuple):
    """The children of some nodes, where their logits lie."""

    tokens: Tensor  # (nodes, k) int64, in the order they were drawn in
    rates: Tensor  # (nodes, k) float32, their q; 0 for what was not drawn, as q has no more tokens
    q: Tensor  # (nodes, vocab) float32 probabilities that they were drawn from


class Drawn(NamedTuple):
    """The children of one node, and what they were drawn from."""

    tokens: list[int]  # in the order they were drawn in
    q: Tensor  # (vocab,) float32 probabilities, on the device of the logits


def draw_level(logits: Tensor, k: int, places: Sequence[Place]) -> Drawing:
    """Draws `k` tokens for each row of `logits` (nodes, vocab), one after the other without
    replacement, from q = softmax(row). With `k` = 1 that is one sample of q. `places` (nodes,) say
    whose noise it is, each with a stream of its own. Nothing waits for the device.

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


def draw_children(
    logits: Tensor, k: int, *, seed: int, sample: int, position: int, draw: int
) -> Drawn:
    """Draws `k` tokens of `logits` (vocab,) as `draw_level` does; fewer where q has fewer.

    `logits` are warped as the request warps the target's (`DraftGuide.warp`). `k` and whether to
    draw may depend on the path down to the node, never on what is drawn here. `position`, a place
    in the generated text, and `draw` together name every draw of a text once, so that no two share
    noise, nor one the target's or the verifier's.
    """
    place = Place(seed, sample, position, DRAFT_STREAM + draw)
    drawing = draw_level(logits.unsqueeze(0), k, [place])
    (tokens,), (rates,) = read(drawing.tokens, drawing.rates)
    drawn = [int(token) for token, rate in zip(tokens, rates, strict=True) if rate > 0.0]
    return Drawn(drawn, drawing.q[0])
