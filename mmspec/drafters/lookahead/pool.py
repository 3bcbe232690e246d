"""NgramPool: n-grams by their first token."""

from collections import OrderedDict

_MOST_FIRST_TOKENS = 8192


class NgramPool:
    """Of each first token the `guess_set` newest n-grams, without it; of all first tokens the
    newest. One that is met again is new again."""

    def __init__(self, guess_set: int) -> None:
        self._guess_set = guess_set
        self._tails: OrderedDict[int, dict[tuple[int, ...], None]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._tails.values()))

    def add(self, first: int, tail: tuple[int, ...]) -> None:
        tails = self._tails.setdefault(first, {})
        self._tails.move_to_end(first)
        tails.pop(tail, None)
        tails[tail] = None
        if len(tails) > self._guess_set:
            del tails[next(iter(tails))]
        if len(self._tails) > _MOST_FIRST_TOKENS:
            self._tails.popitem(last=False)

    def after(self, first: int) -> list[tuple[int, ...]]:
        """What is known to follow `first`, the newest first."""
        return list(reversed(self._tails.get(first, {})))
