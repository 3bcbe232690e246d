"""TextLengths: how long an engine's texts get."""

from collections import deque
from statistics import median

_RECENT = 9  # texts that the usual length is the median of
_UNKNOWN = 64  # tokens, before any text has ended


class TextLengths:
    """In tokens."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def observe(self, num_tokens: int) -> None:
        """A text has ended."""
        self._recent.append(num_tokens)

    @property
    def usual(self) -> int:
        return int(median(self._recent)) if self._recent else _UNKNOWN
