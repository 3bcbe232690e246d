"""The largest of a vocabulary's logits."""

import torch
from torch import Tensor

_BLOCK = 64


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of each row of `logits` (nodes, vocab) the `k` largest, the largest first, in float32, and
    their tokens: (nodes, k) both. Nothing waits for the device.

    They lie in the k blocks of the vocabulary whose largest are the largest: so most of it is read
    once, and not sorted.
    """
    nodes, vocab = logits.shape
    whole = vocab // _BLOCK * _BLOCK
    blocks = logits[:, :whole].view(nodes, -1, _BLOCK)
    if blocks.shape[1] > k:
        best = blocks.amax(dim=-1).topk(k, sorted=False).indices  # (nodes, k)
        first = best.unsqueeze(-1) * _BLOCK
        tokens = (first + torch.arange(_BLOCK, device=logits.device)).view(nodes, -1)
        rest = torch.arange(whole, vocab, device=logits.device).expand(nodes, -1)
        tokens = torch.cat([tokens, rest], dim=1)
        logits = logits.gather(1, tokens)
    else:
        tokens = torch.arange(vocab, device=logits.device).expand(nodes, -1)
    found = logits.topk(k, dim=-1)
    return found.values.float(), tokens.gather(1, found.indices)
