"""The prompts of one call of `batch` or `generate`, each asked in a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import TypeVar

from langchain_core.runnables.config import ContextThreadPoolExecutor

One = TypeVar("One")
Own = TypeVar("Own")
Told = TypeVar("Told")

# Of the call that a thread asks for: Ctrl-C has ended it.
_INTERRUPTED: ContextVar[threading.Event | None] = ContextVar("mmspec_interrupted", default=None)


def ask_each(
    ask: Callable[[One, Own], Told], prompts: Sequence[One], own: Sequence[Own], *, most: int
) -> list[Told]:
    """`ask` of each prompt with what is its own, in `most` threads. Where Ctrl-C ends it, what they
    decode ends at its next step."""
    if len(prompts) < 2:
        return list(map(ask, prompts, own))
    interrupted = threading.Event()
    token = _INTERRUPTED.set(interrupted)
    try:
        with ContextThreadPoolExecutor(most) as pool:  # which waits for what has begun
            try:
                return list(pool.map(ask, prompts, own))
            except KeyboardInterrupt:
                interrupted.set()
                raise
    finally:
        _INTERRUPTED.reset(token)


def still_wanted() -> Callable[[], bool] | None:
    """Asked between steps of what this thread decodes: False once its call was interrupted. None
    outside such a call."""
    interrupted = _INTERRUPTED.get()
    return None if interrupted is None else lambda: not interrupted.is_set()


def check_wanted() -> None:
    """Raises CancelledError, so that no cache keeps a part of an answer, once its call was
    interrupted."""
    interrupted = _INTERRUPTED.get()
    if interrupted is not None and interrupted.is_set():
        raise CancelledError("the call was interrupted")
