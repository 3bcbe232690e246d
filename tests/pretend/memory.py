"""Tensors of the CPU seen as tensors of another device, and back: the same memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CUDA, APPLE = torch.device("cuda", 0), torch.device("mps", 0)


@dataclass(frozen=True)
class _Kind:
    """A device's numbers and names in C++."""

    dlpack: int
    torch: int  # c10::DeviceType
    key: str  # of the dispatcher


_KINDS = {"cpu": _Kind(1, 0, "CPU"), "cuda": _Kind(2, 1, "CUDA"), "mps": _Kind(8, 13, "MPS")}
_NUM_GUARDS = 14
_DEVICE_OFFSET = ctypes.sizeof(ctypes.c_void_p)  # in a DLTensor: behind the address of its data
_VIEWS = ("as_strided", "view", "_reshape_alias", "unfold")  # what all other views are made of

_address_of = ctypes.pythonapi.PyCapsule_GetPointer
_address_of.restype = ctypes.c_void_p
_address_of.argtypes = [ctypes.py_object, ctypes.c_char_p]


def seen_on(tensor: Tensor, kind: str) -> Tensor:
    """A plain tensor on the first device of its kind, that lies where `tensor` does: changes to the
    one are changes to the other."""
    if tensor.device.type == kind:
        return tensor
    capsule = torch._C._to_dlpack(tensor.detach())
    device = ctypes.cast(
        _address_of(capsule, b"dltensor") + _DEVICE_OFFSET, ctypes.POINTER(ctypes.c_int32)
    )
    device[0], device[1] = _KINDS[kind].dlpack, 0
    seen: Tensor = torch._C._from_dlpack(capsule)
    return seen


@contextmanager
def known_to_torch(kind: str) -> Iterator[None]:
    """Within it, a torch that was built without them takes tensors of that kind for its own: it
    changes "devices" in C++ as it does on a CPU, by doing nothing, and makes views."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * _NUM_GUARDS).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )
    place = _KINDS[kind].torch
    before = guards[place]
    guards[place] = guards[_KINDS["cpu"].torch]
    views = torch.library.Library("aten", "IMPL")
    for name in _VIEWS:
        operation = getattr(torch.ops.aten, name).default
        views.impl(name, _computed_as_on_cpu(operation), _KINDS[kind].key)
    try:
        yield
    finally:
        views._destroy()
        guards[place] = before


def _computed_as_on_cpu(operation: Any) -> Any:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def compute(*args: Any, **kwargs: Any) -> Any:
        return operation.redispatch(keys, *args, **kwargs)

    return compute
