"""TokenView: a text that somebody else goes on with, to be read only."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import overload


class TokenView(Sequence[int]):
    """The tokens of a text, and `more` behind them, without a copy of either. It grows as they do:
    who keeps something of it for later takes a slice, which is a list of its own."""

    __slots__ = ("_more", "_tokens")

    def __init__(self, tokens: Sequence[int], more: Sequence[int] = ()) -> None:
        self._tokens = tokens
        self._more = more

    def __len__(self) -> int:
        return len(self._tokens) + len(self._more)

    def __iter__(self) -> Iterator[int]:
        return chain(self._tokens, self._more)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        border = len(self._tokens)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[place] for place in range(start, stop, step)]
            before = self._tokens[start : min(stop, border)]
            return [*before, *self._more[max(start - border, 0) : max(stop - border, 0)]]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"token {index} of {len(self)}")
        return self._tokens[place] if place < border else self._more[place - border]

    def __repr__(self) -> str:
        return f"TokenView({len(self)} tokens)"
