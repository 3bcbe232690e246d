"""Tensors of the CPU seen as tensors of a CUDA device, and back: the same memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CUDA = torch.device("cuda", 0)
_KINDS = {"cpu": 1, "cuda": 2}  # of DLPack
_DEVICE_OFFSET = ctypes.sizeof(ctypes.c_void_p)  # in a DLTensor: behind the address of its data
_VIEWS = ("as_strided", "view", "_reshape_alias", "unfold")  # what all other views are made of

_address_of = ctypes.pythonapi.PyCapsule_GetPointer
_address_of.restype = ctypes.c_void_p
_address_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def on_cuda(tensor: Tensor) -> Tensor:
    """A plain tensor on `cuda:0`, that lies where `tensor` does."""
    return tensor if tensor.is_cuda else _seen_on(tensor, "cuda")


def on_cpu(tensor: Tensor) -> Tensor:
    """What `on_cuda` was given: changes to the one are changes to the other."""
    return _seen_on(tensor, "cpu") if tensor.is_cuda else tensor


def _seen_on(tensor: Tensor, kind: str) -> Tensor:
    capsule = torch._C._to_dlpack(tensor.detach())
    device = ctypes.cast(
        _address_of(capsule, b"dltensor") + _DEVICE_OFFSET, ctypes.POINTER(ctypes.c_int32)
    )
    device[0], device[1] = _KINDS[kind], 0
    seen: Tensor = torch._C._from_dlpack(capsule)
    return seen


@contextmanager
def known_to_torch() -> Iterator[None]:
    """Within it, a torch that was built without CUDA takes a CUDA tensor for its own: it changes
    "devices" in C++ as it does on a CPU, by doing nothing, and makes views."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )  # by device: CPU, CUDA
    before = guards[1]
    guards[1] = guards[0]
    views = torch.library.Library("aten", "IMPL")
    for name in _VIEWS:
        views.impl(name, _computed_as_on_cpu(getattr(torch.ops.aten, name).default), "CUDA")
    try:
        yield
    finally:
        views._destroy()
        guards[1] = before


def _computed_as_on_cpu(operation: Any) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def compute(*args: Any, **kwargs: Any) -> Any:
        return operation.redispatch(keys, *args, **kwargs)

    return compute
