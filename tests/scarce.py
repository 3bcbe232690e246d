"""Memory that is used up at any one of the allocations of what runs."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Scarce(TorchDispatchMode):
    """Within it the operation that makes a tensor after `failing` others finds no memory for it."""

    def __init__(self, failing: int) -> None:
        super().__init__()
        self._left = failing

    @property
    def has_failed(self) -> bool:
        return self._left < 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))
        if not _storages(made) <= given:  # a view, or a write, takes none
            self._left -= 1
            if self._left == -1:
                raise torch.OutOfMemoryError(f"no memory for {func}")
        return made


def each_scarcity() -> Iterator[Scarce]:
    """One for the first allocation, the second, and so on, up to one that all went well within."""
    for failing in count():
        scarce = Scarce(failing)
        yield scarce
        if not scarce.has_failed:
            assert failing, "nothing was allocated"
            return


def _storages(tree: Any) -> set[int]:
    return {
        leaf.untyped_storage()._cdata
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.numel()
    }
