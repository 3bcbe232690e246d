"""What the host reads of a device: several small tensors in one copy, which is one wait."""

from typing import Any

import torch
from torch import Tensor


class Readback:
    """Several small tensors on their way to the host. Their bytes are joined, so that none has to
    be converted first: two launches, whatever there is to read."""

    def __init__(self, *tensors: Tensor) -> None:
        self._tensors = tensors
        self._joined = torch.cat([_bytes(tensor) for tensor in tensors]) if tensors else None
        self._arrival: torch.cuda.Event | None = None

    def set_out(self) -> None:
        """Has the device copy them now: `values` waits no longer for what it is told to do next."""
        if self._joined is not None and self._joined.is_cuda:
            stream = torch.cuda.current_stream(self._joined.device)
            on_host = torch.empty(self._joined.shape, dtype=torch.uint8).pin_memory()
            self._joined = on_host.copy_(self._joined, non_blocking=True)
            self._arrival = stream.record_event()

    def values(self) -> list[list[Any]]:
        """Of each tensor (first, ...) its values, nested as it is. Waits for the device."""
        if self._joined is None:
            return []
        if self._arrival is not None:
            self._arrival.synchronize()
        parts = self._joined.cpu().split([tensor.nbytes for tensor in self._tensors])
        return [
            part.clone().view(tensor.dtype).view(tensor.shape).tolist()  # cloned: each is aligned
            for part, tensor in zip(parts, self._tensors, strict=True)
        ]


def read(*tensors: Tensor) -> list[list[Any]]:
    """The values of each tensor (first, ...), nested as it is."""
    return Readback(*tensors).values()


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # also of a single element: only then it can be seen as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
