"""Callbacks of a request's own, which may wait for anything: how long a loop has stood in one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Said = TypeVar("Said")


class Callbacks:
    """Those that are called in one thread."""

    def __init__(self) -> None:
        self.since: float | None = None  # `time.monotonic()` when the running one was called


class _Thread(threading.local):
    callbacks: Callbacks | None = None


_THREAD = _Thread()


@contextmanager
def noted_in(callbacks: Callbacks) -> Iterator[None]:
    """Within, `call_back` notes there what is called in this thread."""
    before, _THREAD.callbacks = _THREAD.callbacks, callbacks
    try:
        yield
    finally:
        _THREAD.callbacks = before


def call_back(callback: Callable[Given, Said], *args: Given.args, **kwargs: Given.kwargs) -> Said:
    """Calls what may be a user's own."""
    callbacks = _THREAD.callbacks
    if callbacks is None or callbacks.since is not None:  # or it is called within another one
        return callback(*args, **kwargs)
    callbacks.since = time.monotonic()
    try:
        return callback(*args, **kwargs)
    finally:
        callbacks.since = None
