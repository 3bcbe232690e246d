"""What a request calls that is not mmspec's own, and whether a thread stands in such a call."""

import sys
import threading
from collections.abc import Collection, Iterator
from functools import partial
from types import CodeType, FrameType

from mmspec.integrations.guided import GrammarProcessor
from mmspec.requests import Request


def callbacks(request: Request) -> list[object]:
    """Those that are called while it is decoded."""
    processors = [p for p in request.logits_processors if not isinstance(p, GrammarProcessor)]
    single = (request.prefix_allowed_tokens_fn, request.on_prefill, request.is_wanted)
    return [*processors, *request.stopping_criteria, *(one for one in single if one is not None)]


def codes_of(callback: object) -> Iterator[CodeType]:
    """What runs where it is called: of an object all that its class has, for a processor's may be
    asked by other names than as a function."""
    while isinstance(callback, partial):
        callback = callback.func
    own = getattr(callback, "__code__", None)
    made = (member for kind in type(callback).__mro__ for member in vars(kind).values())
    codes = [own] if own is not None else [getattr(member, "__code__", None) for member in made]
    yield from (code for code in codes if isinstance(code, CodeType))


def call_under_way(thread: threading.Thread, codes: Collection[CodeType]) -> FrameType | None:
    """The outermost call of one of these in which the thread stands."""
    frame = sys._current_frames().get(thread.ident or 0)
    found = None
    while frame is not None:
        if frame.f_code in codes:
            found = frame
        frame = frame.f_back
    return found
