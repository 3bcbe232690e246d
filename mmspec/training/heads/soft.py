"""Cross-entropy against what the target says, a chunk of tokens at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 1024  # tokens whose logits over the vocabulary are in memory together


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """(tokens,) -sum_x p(x) log q(x); `logits` and `wanted` (tokens, vocab): of q and of p, which
    gets no gradient."""
    return -(wanted.detach().float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1)


def summed_over_tokens(
    loss: Callable[[Tensor, Tensor], Tensor], states: Tensor, wanted: Tensor
) -> Tensor:
    """() the sum of `loss`, itself a sum, over chunks of `states` and `wanted`, (tokens, ...) each.
    The logits within are made again for the gradient, so that those of a chunk alone are kept."""
    total = states.new_zeros((), dtype=torch.float32)
    for first in range(0, states.shape[0], _CHUNK):
        part = slice(first, first + _CHUNK)
        total = total + checkpoint(loss, states[part], wanted[part], use_reentrant=False)
    return total
