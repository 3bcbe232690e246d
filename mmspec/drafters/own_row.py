"""OwnRow: one request's row of a drafter's own cache."""

from contextlib import AbstractContextManager

from mmspec.kv import KVCache


class OwnRow:
    """A session's row of its drafter's cache, which holds the rows of all sessions, whatever call
    or thread they belong to. It is opened once, when there is something to write."""

    def __init__(self, cache: KVCache, lock: AbstractContextManager[bool]) -> None:
        """`lock` is held while the cache is read or written; it can be taken again."""
        self._cache = cache
        self._lock = lock
        self._number: int | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        return self._number is not None

    @property
    def number(self) -> int:
        """The row's number in the cache."""
        assert self._number is not None, "nothing was read"
        return self._number

    def open(self, num_tokens: int) -> int:
        """With room for so many at first; returns its number."""
        assert not self._is_closed, "the session is closed"
        assert self._number is None, "the row is open"
        self._number = self._cache.open(num_tokens)
        return self._number

    def close(self) -> None:
        """The request ended; the cache's last row gives the memory back."""
        with self._lock:
            self._is_closed = True
            if self._number is not None:
                self._cache.close(self._number)
                self._number = None
                if not self._cache.rows:
                    self._cache.release()
