"""Drawing: a node's children from a drafter's distribution, for the rules that divide by q."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.noise import DRAFT_STREAM, gumbel


class Drawn(NamedTuple):
    """The children of one node, and what they were drawn from."""

    tokens: list[int]  # in the order they were drawn in
    q: Tensor  # (vocab,) float32 probabilities, on the device of the logits


def draw_children(
    logits: Tensor, k: int, *, seed: int, sample: int, position: int, draw: int
) -> Drawn:
    """Draws `k` tokens, one after the other without replacement, from q = softmax(`logits`); fewer
    where q has fewer. With `k` = 1 that is one sample of q.

    `logits` (vocab,), warped as the request warps the target's (`DraftGuide.warp`). `k` and whether
    to draw may depend on the path down to the node, never on what is drawn here. `position`, a
    place in the generated text, and `draw` together name every draw of a text once, so that no two
    share noise, nor one the target's or the verifier's.

    The largest k of log q + Gumbel noise, from the largest down, are a draw without replacement
    (Gumbel-top-k: Kool, van Hoof, Welling, arXiv 1903.06059).
    """
    scores = logits.float()
    noise = gumbel(
        seed,
        position,
        scores.shape[0],
        sample=sample,
        stream=DRAFT_STREAM + draw,
        device=scores.device,
    )
    q = torch.softmax(scores, dim=-1)
    # A token whose probability underflows is never drawn: the rules could not divide by it.
    drawable = torch.where(q > 0.0, scores + noise, -torch.inf)
    num_drawn = min(k, int((q > 0.0).sum()))
    return Drawn(drawable.topk(num_drawn).indices.tolist(), q)
