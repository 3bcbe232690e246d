"""own_modes: what torch computes in, whoever calls mmspec from within which of its modes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.amp import is_autocast_available

_KINDS = ("cpu", "cuda")  # of devices that a model may be spread over


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Leaves a caller's torch.inference_mode(), in which is made what cannot be written to once it
    has ended, and torch.autocast: what is kept for later requests is of the weights' own dtype.
    Without gradients, as transformers' generate: a processor of the caller's may have weights."""
    kinds = {*_KINDS, device.type}  # "meta" of weights that are elsewhere has no autocast
    casts = [k for k in kinds if is_autocast_available(k) and torch.is_autocast_enabled(k)]
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on
        for kind in casts:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.no_grad())
        yield
