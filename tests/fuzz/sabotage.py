"""Drafters that fail where it hurts: before they answer, behind it, or within a forward."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmspec.engine import Engine
from mmspec.kv.layer import FlatLayer


class _Drafting(threading.local):
    """Writes of keys that the forwards of this thread's drafter have left, until one fails."""

    left: int | None = None


@contextmanager
def sabotaged(draw: random.Random, engine: Engine) -> Iterator[str]:
    """Within it some drafters of the engine fail now and then; gives what was done to them."""
    own, told = random.Random(draw.random()), []
    drafting, update = _Drafting(), FlatLayer.update

    def failing_update(self: FlatLayer, *args: Any, **kwargs: Any) -> Any:
        if drafting.left is not None:
            drafting.left -= 1
            if drafting.left < 0:
                drafting.left = None
                raise RuntimeError("a draft's forward fails")
        return update(self, *args, **kwargs)

    patched: list[Any] = []
    for drafter in engine.drafters:
        propose = getattr(drafter, "propose_together", None)
        if propose is None or draw.random() > 0.15:
            continue
        when = draw.choice(["before", "behind", "within"])
        told.append(f"{drafter.name} fails {when}")
        drafter.propose_together = _failing(propose, when, own, drafting)  # type: ignore[attr-defined]
        patched.append(drafter)
    if any("within" in each for each in told):
        FlatLayer.update = failing_update  # type: ignore[method-assign]
    try:
        yield ", ".join(told)
    finally:
        FlatLayer.update = update  # type: ignore[method-assign]
        for drafter in patched:
            del drafter.propose_together


def _failing(
    propose: Callable[..., Any], when: str, draw: random.Random, drafting: _Drafting
) -> Callable[..., Any]:
    def failing(sessions: Sequence[Any], texts: Sequence[Any], budget: int) -> Any:
        fails = draw.random() < 0.2
        if fails and when == "before":
            raise RuntimeError("the drafter fails before it answers")
        if fails and when == "within":
            drafting.left = draw.randrange(12)
        try:
            trees = propose(sessions, texts, budget)
        finally:
            drafting.left = None
        if fails and when == "behind":
            raise RuntimeError("the drafter fails behind its answer")
        return trees

    return failing
