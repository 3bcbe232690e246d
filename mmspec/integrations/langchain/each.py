"""The prompts of one call of `batch` or `generate`, each asked in a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from typing import TypeVar

from langchain_core.runnables.config import ContextThreadPoolExecutor

from mmspec.engine import Engine
from mmspec.integrations.joined import answer
from mmspec.requests import Request, Result

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


def answer_wanted(engine: Engine, request: Request) -> Result:
    """The answer. Raises CancelledError, so that no cache keeps a part of it, where it is wanted no
    more."""
    interrupted = _INTERRUPTED.get()
    if interrupted is None:
        return answer(engine, request)
    result = answer(engine, request, is_wanted=lambda: not interrupted.is_set())
    if interrupted.is_set():
        raise CancelledError("the call was interrupted")
    return result
