"""own_modes: what torch computes in, whoever calls mmspec from within which of its modes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from torch.amp import is_autocast_available


@cache
def _cast_kinds(kind: str) -> tuple[str, ...]:
    """Of devices that a model may be spread over, whose weights are said to be on `kind`: "meta",
    of weights that are elsewhere, has no autocast. Asked at each step."""
    return tuple(filter(is_autocast_available, dict.fromkeys(("cpu", "cuda", kind))))


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Leaves a caller's torch.inference_mode(), in which is made what cannot be written to once it
    has ended, and torch.autocast: what is kept for later requests is of the weights' own dtype.
    Without gradients, as transformers' generate: a processor of the caller's may have weights."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on
        for kind in filter(torch.is_autocast_enabled, _cast_kinds(device.type)):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(torch.no_grad())
        yield
