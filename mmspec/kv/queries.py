"""QueryLog: the queries of each row's newest tokens, as attention saw them in forwards that ran
anyway. Policies choose by them what a view shows; where none asks, there is no log."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class NewestQueries:
    """One layer's queries of one row's newest committed tokens, oldest first."""

    states: Tensor  # (queries, heads, head_dim), rotated as the keys are
    scaling: float  # of query * key, in that layer


@dataclass
class _Piece:
    """Queries of tokens that one forward wrote, or the committed ones of them."""

    count: int
    first: int = 0  # the first token whose queries were kept
    kept: list[int] | None = None  # which of `states` were committed; None: all
    states: dict[int, Tensor] = field(default_factory=dict)  # layer -> (tokens, heads, head_dim)
    scalings: dict[int, float] = field(default_factory=dict)

    def read(self, layer: int) -> Tensor:
        states = self.states[layer]
        return states if self.kept is None else states[self.kept]


class QueryTap:
    """Takes one forward's queries, a layer at a time."""

    def __init__(self, pieces: Sequence[_Piece], num_tokens: int) -> None:
        self._pieces = pieces  # (batch,)
        self._num_tokens = num_tokens

    def take(self, layer: int, query: Tensor, scaling: float) -> None:
        """`query` (batch, heads, tokens, head_dim), the rows padded to the longest."""
        for row, piece in enumerate(self._pieces):
            piece.first = max(piece.count - self._num_tokens, 0)
            states = query[row, :, piece.first : piece.count].transpose(0, 1)
            # A copy where the forward had more: a slice would keep all of it in memory.
            piece.states[layer] = states.clone() if piece.first else states
            piece.scalings[layer] = scaling


class QueryLog:
    """Keeps the queries of the `num_tokens` newest committed tokens of each row, or of fewer where
    the tokens before came from a store and were never computed."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._written: dict[int, _Piece] = {}
        self._committed: dict[int, deque[_Piece]] = {}

    def tap(self, rows: Sequence[int], counts: Sequence[int]) -> QueryTap:
        """Of a forward that writes `counts[i]` tokens behind the committed ones of `rows[i]`."""
        pieces = [_Piece(count) for count in counts]
        self._written.update(zip(rows, pieces, strict=True))
        return QueryTap(pieces, self.num_tokens)

    def commit(self, paths: Mapping[int, Sequence[int]]) -> None:
        """The rows' tokens at `path` of those written stay."""
        for row, path in paths.items():
            piece = self._written.pop(row, None)
            if piece is None or not piece.states:
                self._committed.pop(row, None)  # what was not seen leaves a gap
                continue
            kept = [index - piece.first for index in path if index >= piece.first]
            if not kept:
                continue
            piece.kept = None if len(kept) == piece.count - piece.first else kept
            piece.count = len(kept)
            pieces = self._committed.setdefault(row, deque())
            pieces.append(piece)
            while sum(p.count for p in pieces) - pieces[0].count >= self.num_tokens:
                pieces.popleft()

    def read(self, row: int, layer: int) -> NewestQueries | None:
        """None where nothing is known of the row's newest token in this layer."""
        pieces = self._committed.get(row)
        if not pieces or any(layer not in piece.states for piece in pieces):
            return None
        states = torch.cat([piece.read(layer) for piece in pieces])[-self.num_tokens :]
        return NewestQueries(states, pieces[-1].scalings[layer])

    def forget(self, row: int) -> None:
        """The row was closed, or its tokens were."""
        self._written.pop(row, None)
        self._committed.pop(row, None)

    def clear(self) -> None:
        self._written.clear()
        self._committed.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all queries that are kept."""
        pieces = [*self._written.values(), *(p for row in self._committed.values() for p in row)]
        return sum(states.nbytes for piece in pieces for states in piece.states.values())
