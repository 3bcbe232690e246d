"""Successors: what the target held likeliest behind a context, the newest it said of each."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Context = tuple[int, int]  # the last two tokens of a text


class Found(NamedTuple):
    """What is known of a context."""

    is_exact: bool  # of both of its tokens; else of the last one alone
    tokens: list[int]  # (k,) the likeliest first
    logits: list[float]  # (k,)


class Successors:
    """Of the newest `size` contexts. One that was never met has what was said last of any that ends
    in the same token. Threads may share it."""

    def __init__(self, size: int, k: int) -> None:
        self.k = k
        self._size = size
        self._tokens = np.empty((size, k), dtype=np.int32)
        self._logits = np.empty((size, k), dtype=np.float32)
        self._place_of = OrderedDict[Context, int]()  # the oldest first
        self._newest = dict[int, int]()  # last token -> place
        self._lock = threading.Lock()

    def add(self, said: Iterable[tuple[Context, Sequence[int], Sequence[float]]]) -> None:
        """What was said of contexts: of each its tokens (k,), the likeliest first, and their logits
        (k,). Of equal ones the last counts."""
        with self._lock:
            for context, tokens, logits in said:
                place = self._place_of.pop(context, None)
                if place is None:
                    place = self._free_place()
                self._place_of[context] = self._newest[context[1]] = place
                self._tokens[place], self._logits[place] = tokens, logits

    def after(self, contexts: Sequence[Context]) -> list[Found | None]:
        """Of each context; None where even its last token is new."""
        with self._lock:
            return [self._after(context) for context in contexts]

    def _after(self, context: Context) -> Found | None:
        exact = self._place_of.get(context)
        place = self._newest.get(context[1]) if exact is None else exact
        if place is None:
            return None
        tokens, logits = self._tokens[place].tolist(), self._logits[place].tolist()
        return Found(exact is not None, tokens, logits)

    def _free_place(self) -> int:
        if len(self._place_of) < self._size:
            return len(self._place_of)
        (_, last), place = self._place_of.popitem(last=False)
        if self._newest[last] == place:
            del self._newest[last]
        return place
