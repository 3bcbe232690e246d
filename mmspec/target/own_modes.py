"""own_modes: what torch computes in, whoever calls mmspec from within which of its modes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

import torch
from torch.amp import is_autocast_available


@cache
def _cast_kinds(kind: str) -> tuple[str, ...]:
    """Of devices that a model may be spread over, whose weights are said to be on `kind`: "meta",
    of weights that are elsewhere, has no autocast. Asked at each step."""
    return tuple(filter(is_autocast_available, dict.fromkeys(("cpu", "cuda", kind))))


def own_modes(device: torch.device) -> AbstractContextManager[None]:
    """Leaves a caller's torch.inference_mode(), in which is made what cannot be written to once it
    has ended, torch.autocast, as what is kept for later requests is of the weights' own dtype, and
    a default device (`with torch.device("meta")`): what names none is made on the host.
    Without gradients, as transformers' generate: a processor of the caller's may have weights."""
    cast = filter(torch.is_autocast_enabled, _cast_kinds(device.type))
    left: list[AbstractContextManager[object]] = [torch.autocast(k, enabled=False) for k in cast]
    if torch.is_inference_mode_enabled():
        left.append(torch.inference_mode(False))  # which turns gradients on
    if torch.empty(0).device.type != "cpu":  # torch.get_default_device() takes five times as long
        left.append(torch.device("cpu"))
    return _all_of(*left, torch.no_grad()) if left else torch.no_grad()


@contextmanager
def _all_of(*modes: AbstractContextManager[object]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
