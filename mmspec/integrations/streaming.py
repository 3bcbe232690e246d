"""transformers' streamers, fed from rows that advance at their own pace."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class StreamFeed:
    """Gives a streamer one token of each row at a time, (batch,), as transformers does; a row that
    has ended gives the padding. `generate` has put the prompt already."""

    def __init__(
        self, streamer: BaseStreamer, num_rows: int, *, ends: Sequence[int], pad: int
    ) -> None:
        """`ends` are the tokens that end a row."""
        self._streamer = streamer
        self._rows: list[list[int]] = [[] for _ in range(num_rows)]
        self._ends = frozenset(ends)
        self._pad = pad
        self._num_put = 0

    def criterion(self, row: int) -> "Relay":
        """Called with each token of the row, it passes the token on and stops nothing."""
        return Relay(self, row)

    def push(self, row: int, token: int) -> None:
        self._rows[row].append(token)
        open_rows = [r for r in self._rows if not r or r[-1] not in self._ends]
        self._put(min(map(len, open_rows or self._rows)))

    def end(self) -> None:
        """All rows have ended."""
        self._put(max(map(len, self._rows)))
        self._streamer.end()

    def _put(self, until: int) -> None:
        for column in range(self._num_put, min(until, max(map(len, self._rows)))):
            tokens = [row[column] if column < len(row) else self._pad for row in self._rows]
            self._streamer.put(torch.tensor(tokens))
            self._num_put = column + 1


class Relay(StoppingCriteria):
    """One row's way to the feed."""

    def __init__(self, feed: StreamFeed, row: int) -> None:
        self._feed = feed
        self._row = row

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> bool:
        self._feed.push(self._row, int(input_ids[0, -1]))
        return False
