"""A head's own vocabulary, where it is a part of the target's: d2t[i] + i is the target's id of its
token i, and t2d says of each token of the target whether it is one."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmspec.errors import ConfigError


def read_vocabulary(
    tensors: Mapping[str, Tensor], *, size: int, vocab_size: int, who: str
) -> dict[str, Tensor]:
    """d2t (size,) int64 and t2d (vocab_size,) bool, either of which says the other; neither is
    needed where nothing is left out. Raises ConfigError for what is no such vocabulary."""
    steps, name = torch.arange(size), "d2t"
    if "d2t" in tensors:
        offsets = tensors["d2t"].long()
    elif "t2d" in tensors:
        name, known = "what is True in t2d", tensors["t2d"].bool().nonzero().squeeze(1)[:size]
        offsets = known - steps[: known.shape[0]]
    elif size == vocab_size:
        offsets = torch.zeros_like(steps)
    else:
        raise ConfigError(
            f"{who}: {size} of the target's {vocab_size} tokens are drafted, but no d2t says which"
        )
    if offsets.shape != (size,):
        raise ConfigError(f"{who}: {name} has the shape {tuple(offsets.shape)}, expected ({size},)")
    ids = offsets + steps
    if not bool(((ids >= 0) & (ids < vocab_size)).all()):
        raise ConfigError(
            f"{who}: d2t leads to tokens {int(ids.min())} to {int(ids.max())}, expected ids of a "
            f"vocabulary of {vocab_size}"
        )
    known = torch.zeros(vocab_size, dtype=torch.bool)
    known[ids] = True
    return {"d2t": offsets, "t2d": known}


def target_ids(d2t: Tensor) -> Tensor:
    """(size,) int64: the target's ids of its tokens."""
    return d2t + torch.arange(d2t.shape[0], device=d2t.device)


def over_target(logits: Tensor, ids: Tensor | None, vocab_size: int) -> Tensor:
    """(..., size) of the tokens `ids` -> (..., vocab_size), -inf for what is never drafted: noise
    and warpers stay the target's. `ids` None: they are the target's already."""
    if ids is None:
        return logits
    all_logits = logits.new_full((*logits.shape[:-1], vocab_size), -torch.inf)
    return all_logits.index_copy_(-1, ids, logits)
