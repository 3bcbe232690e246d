"""own_modes: what torch computes in, whoever calls mmspec from within which of its modes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Leaves a caller's torch.inference_mode(), in which is made what cannot be written to once it
    has ended, and torch.autocast: what is kept for later requests is of the weights' own dtype.
    Without gradients, as transformers' generate: a processor of the caller's may have weights."""
    is_within, is_cast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device.type)
    with (
        torch.inference_mode(False) if is_within else nullcontext(),  # which turns gradients on
        torch.autocast(device.type, enabled=False) if is_cast else nullcontext(),
        torch.no_grad(),
    ):
        yield
