"""Decoding for an event loop: in another thread, and no longer than it is waited for."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import TypeVar

T = TypeVar("T")


async def in_thread(items: Generator[T, None, None]) -> AsyncIterator[T]:
    """The items of a generator, whose steps run in threads, one after the other. Leaving early,
    also by cancellation, closes the generator once its step under way has ended."""
    lock, end = threading.Lock(), object()

    def step() -> object:
        with lock:
            return next(items, end)

    def close() -> None:
        with lock:
            items.close()

    try:
        while (item := await asyncio.to_thread(step)) is not end:
            yield item  # type: ignore[misc]
    finally:
        await asyncio.shield(asyncio.to_thread(close))


async def answered_in_thread(answer: Callable[[Callable[[], bool]], T]) -> T:
    """What `answer` returns, called in another thread with an `is_wanted` for its requests: they
    end at their next step once the caller was cancelled, for a thread cannot be."""
    is_left = threading.Event()
    try:
        return await asyncio.to_thread(answer, lambda: not is_left.is_set())
    finally:
        is_left.set()
