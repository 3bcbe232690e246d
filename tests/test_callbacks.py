"""`mmspec.callbacks`: which callback a loop stands in."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from mmspec.callbacks import Callbacks, call_back, noted_in


def test_a_callback_is_noted_while_it_lasts_as_the_outermost_one() -> None:
    callbacks = Callbacks()
    assert call_back(lambda: callbacks.since) is None
    with noted_in(callbacks):
        outer, inner, behind = call_back(
            lambda: (callbacks.since, call_back(lambda: callbacks.since), callbacks.since)
        )
        assert outer is not None and outer == inner == behind
        assert callbacks.since is None
    assert call_back(lambda: callbacks.since) is None


def test_another_thread_s_callback_is_not_the_loop_s() -> None:
    """Also of a thread that one of its callbacks has begun, with its context."""
    callbacks = Callbacks()
    with noted_in(callbacks), ThreadPoolExecutor(1) as pool:
        own = copy_context()
        assert pool.submit(own.run, call_back, lambda: callbacks.since).result() is None
