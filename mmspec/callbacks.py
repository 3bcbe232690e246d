"""Callbacks of a request's own, which may wait for anything: how long a loop has stood in one."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Said = TypeVar("Said")


class Callbacks:
    """Those that are called in one thread."""

    def __init__(self) -> None:
        self.since: float | None = None  # `time.monotonic()` when the running one was called


_NOTED: ContextVar[Callbacks | None] = ContextVar("mmspec_callbacks", default=None)


@contextmanager
def noted_in(callbacks: Callbacks) -> Iterator[None]:
    """Within, `call_back` notes there what is called."""
    token = _NOTED.set(callbacks)
    try:
        yield
    finally:
        _NOTED.reset(token)


def call_back(callback: Callable[Given, Said], *args: Given.args, **kwargs: Given.kwargs) -> Said:
    """Calls what may be a user's own."""
    callbacks = _NOTED.get()
    if callbacks is None or callbacks.since is not None:  # or it is called within another one
        return callback(*args, **kwargs)
    callbacks.since = time.monotonic()
    try:
        return callback(*args, **kwargs)
    finally:
        callbacks.since = None
