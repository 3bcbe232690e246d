"""NoSync: what a graph cannot repeat is refused before it is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MASKS = (torch.bool, torch.uint8)


class Unrepeatable(RuntimeError):
    """A forward does what no graph can repeat."""


class NoSync(TorchDispatchMode):
    """Within it, operations of this thread raise Unrepeatable that make the CPU wait for what the
    device computed (`.item()`, `nonzero`), or bring values from the CPU in: while a graph is
    recorded the first fail, with the device left in disorder, and the second would stay what they
    were then."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if looks_at_values(func, args) and any(t.device.type == self._device.type for t in given):
            raise Unrepeatable(f"it looks at values on the device ({func})")
        made = func(*args, **(kwargs or {}))
        tensors = [*given, *(leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))]
        # A scalar tensor of the CPU is read as a number is, but where it is copied as a tensor.
        is_move = func is torch.ops.aten._to_copy.default
        if len({tensor.device.type for tensor in tensors if tensor.ndim or is_move}) > 1:
            raise Unrepeatable(f"it copies between CPU and device ({func})")
        return made


def looks_at_values(func: Any, args: Sequence[Any]) -> bool:
    """Whether the CPU has to know what its tensors hold to go on behind the operation."""
    if func is torch.ops.aten.index.Tensor:  # a number of results that depends on the values
        return any(index is not None and index.dtype in _MASKS for index in args[1])
    if func in (torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default):
        masked = any(index is not None and index.dtype in _MASKS for index in args[1])
        return masked and args[2].numel() > 1
    depends = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in depends)
