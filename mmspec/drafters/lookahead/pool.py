"""NgramPool: n-grams by their first token."""

from collections import OrderedDict
from typing import NamedTuple

_MOST_FIRST_TOKENS = 4096  # some megabytes at most


class Guess(NamedTuple):
    """What followed a token."""

    tail: tuple[int, ...]
    was_read: bool  # the text has it, too; else the window alone has found it


class NgramPool:
    """Of each first token the `guess_set` newest n-grams, without it; of all first tokens the
    newest. One that is met again is new again."""

    def __init__(self, guess_set: int) -> None:
        self._guess_set = guess_set
        self._tails: OrderedDict[int, dict[tuple[int, ...], bool]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._tails.values()))

    def add(self, first: int, tail: tuple[int, ...], *, was_read: bool) -> None:
        tails = self._tails.setdefault(first, {})
        self._tails.move_to_end(first)
        was_read |= tails.pop(tail, False)
        tails[tail] = was_read
        if len(tails) > self._guess_set:
            del tails[next(iter(tails))]
        if len(self._tails) > _MOST_FIRST_TOKENS:
            self._tails.popitem(last=False)

    def after(self, first: int) -> list[Guess]:
        """What is known to follow `first`, the newest first."""
        return [Guess(*known) for known in reversed(self._tails.get(first, {}).items())]
