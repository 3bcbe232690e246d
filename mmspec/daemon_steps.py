"""Steps of daemon threads, which Python does not wait for when it ends: it tears them out of
torch's own code, which aborts the process or hangs it."""

import atexit
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_MOST_S = 10.0  # that an end waits: a step may stand in a callback for ever
_CHANGED = threading.Condition()
_STEPPING: set[threading.Thread] = set()
_ENDED = threading.Event()


@contextmanager
def whole_step() -> Iterator[None]:
    """A daemon's step that has begun when Python ends is waited for; its thread goes no further,
    and no other step begins."""
    thread = threading.current_thread()
    if not thread.daemon or thread in _STEPPING:  # a callback's own step is within another
        yield
        return
    with _CHANGED:
        _CHANGED.wait_for(lambda: not _ENDED.is_set())
        _STEPPING.add(thread)
    try:
        yield
    finally:
        with _CHANGED:
            _STEPPING.discard(thread)
            _CHANGED.notify_all()
            _CHANGED.wait_for(lambda: not _ENDED.is_set())


@atexit.register
def _end() -> None:
    """All threads but daemons have ended, and this one."""
    with _CHANGED:
        _ENDED.set()
        until = time.monotonic() + _MOST_S
        while any(thread.is_alive() for thread in _STEPPING) and time.monotonic() < until:
            _CHANGED.wait(0.1)  # in a forked child they are gone without a word
