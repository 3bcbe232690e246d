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
    with noted(target) as forwards:
        steps = list[int]()
        yield steps
    steps += [reads for _, reads in forwards]


@contextmanager
def noted(*targets: Any) -> Iterator[list[tuple[Any, int]]]:
    """Within it the logits of these targets, or of a class that scores as they do, are lent; gives
    at its end each of their score calls with the reads from there to the next one, and before them
    the reads that came first."""
    forwards, patch = list[tuple[Any, int]](), pytest.MonkeyPatch()
    newest: list[Any] = [None]
    Lent.reads = []

    def note(target: Any) -> None:
        forwards.append((newest[0], len(Lent.reads)))
        newest[0] = target
        Lent.reads.clear()

    def lend(target: Any) -> None:
        score = target.score
        if hasattr(target, "prefill"):
            lend_prefill(target)
        patch.setattr(target, "score", lent(target, score))

    def lend_prefill(target: Target) -> None:
        prefill = target.prefill

        def lent_prefill(*args: Any, **kwargs: Any) -> Prefill:
            made = prefill(*args, **kwargs)
            return Prefill(made.logits.as_subclass(Lent), made.placement, made.hidden, made.cache)

        patch.setattr(target, "prefill", lent_prefill)

    def lent(target: Any, score: Any) -> Any:
        def lent_score(*args: Any, **kwargs: Any) -> list[Scores]:
            note(target)
            if kwargs.get("ids") is not None:  # what a forward reads is not counted
                kwargs["ids"] = kwargs["ids"].as_subclass(Tensor)
            made = score(*args, **kwargs)
            return [Scores(one.logits.as_subclass(Lent), one.hidden) for one in made]

        return lent_score

    for target in targets:
        lend(target)
    try:
        yield forwards
        note(None)
    finally:
        patch.undo()
