"""Lent: a tensor that stands for one on a device. What the host reads of it is counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmspec.state import Prefill, Scores
from mmspec.target import Target

READS = frozenset(
    {
        "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__",
        "__array__", "__contains__", "nonzero", "argwhere", "masked_select", "unique", "equal",
        "allclose", "is_nonzero", "__repr__", "__format__",
    }
)  # fmt: skip


class Lent(Tensor):
    """All that is computed of it is lent too."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
        if name in READS or by_mask:
            cls.reads.append(name)
            with torch._C.DisableTorchFunctionSubclass():  # what it does inside is one read
                read = func(*args, **(kwargs or {}))
            return read.as_subclass(Tensor) if name == "cpu" else read
        if name == "to" and any(getattr(a, "type", a) == "cpu" for a in args[1:]):
            cls.reads.append("to(cpu)")
        return super().__torch_function__(func, types, args, kwargs or {})


def _has_mask(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


@contextmanager
def counted(target: Target) -> Iterator[list[int]]:
    """Within it the target's logits are lent; yields the reads since the last score call, a number
    each: of what came before the first one, then of each step."""
    steps, patch = [0], pytest.MonkeyPatch()
    prefill, score = target.prefill, target.score
    Lent.reads = []

    def note() -> None:
        steps[-1] = len(Lent.reads)
        steps.append(0)
        Lent.reads.clear()

    def lent_prefill(*args: Any, **kwargs: Any) -> Prefill:
        made = prefill(*args, **kwargs)
        return Prefill(made.logits.as_subclass(Lent), made.placement, made.hidden, made.cache)

    def lent_score(*args: Any, **kwargs: Any) -> list[Scores]:
        note()
        made = score(*args, **kwargs)
        return [Scores(one.logits.as_subclass(Lent), one.hidden) for one in made]

    patch.setattr(target, "prefill", lent_prefill)
    patch.setattr(target, "score", lent_score)
    try:
        yield steps
        note()
        steps.pop()
    finally:
        patch.undo()
