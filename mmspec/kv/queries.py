"""QueryLog: the queries of each row's newest tokens, as attention saw them in forwards that ran
anyway. Policies choose by them what a view shows; where none asks, there is no log."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmspec.uploads import upload


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
    states: dict[int, Tensor] = field(default_factory=dict)  # layer -> (tokens, heads, head_dim)
    scalings: dict[int, float] = field(default_factory=dict)

    def at(self, path: Sequence[int]) -> "_Piece":
        """Of the tokens at `path` of those that the forward wrote."""
        kept = [index - self.first for index in path if index >= self.first]
        states = self.states
        if len(kept) < self.count - self.first and states:
            places = upload(kept, next(iter(states.values())).device)
            states = {
                layer: each.index_select(0, places.to(each.device))  # of models in parts
                for layer, each in states.items()
            }
        return _Piece(len(kept), states=states, scalings=self.scalings)

    def newest(self, count: int) -> "_Piece":
        """Of the last `count` tokens."""
        states = {layer: each[-count:].clone() for layer, each in self.states.items()}
        return _Piece(count, states=states, scalings=self.scalings)

    @property
    def num_bytes(self) -> int:
        return sum(states.nbytes for states in self.states.values())


class QueryTap:
    """Takes one forward's queries, a layer at a time."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces  # (batch,)

    def take(self, layer: int, query: Tensor, scaling: float) -> None:
        """`query` (batch, heads, tokens, head_dim), the rows padded to the longest."""
        for row, piece in enumerate(self._pieces):
            states = query[row, :, piece.first : piece.count].transpose(0, 1)
            # A copy where the forward had more: a slice would keep all of it in memory.
            is_all = piece.first == 0 and len(self._pieces) == 1
            piece.states[layer] = states if is_all else states.clone()
            piece.scalings[layer] = scaling


class QueryLog:
    """Keeps the queries of the `num_tokens` newest committed tokens of each row, or of fewer where
    the tokens before came from a store and were never computed."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._written: dict[int, _Piece] = {}
        self._committed: dict[int, deque[_Piece]] = {}

    def tap(
        self, rows: Sequence[int], counts: Sequence[int], *, is_prompt: bool = False
    ) -> QueryTap:
        """Of a forward that writes `counts[i]` tokens behind the committed ones of `rows[i]`; of a
        prompt, which is committed to its end, it takes the newest alone."""
        most = self.num_tokens if is_prompt else max(counts)
        pieces = [_Piece(count, max(count - most, 0)) for count in counts]
        self._written.update(zip(rows, pieces, strict=True))
        return QueryTap(pieces)

    def commit(self, paths: Mapping[int, Sequence[int]]) -> None:
        """The rows' tokens at `path` of those written stay. Where it fails all is as it was."""
        after = {row: self._after(row, path) for row, path in paths.items()}
        for row, pieces in after.items():
            self._written.pop(row, None)
            self._committed[row] = pieces

    def _after(self, row: int, path: Sequence[int]) -> deque[_Piece]:
        """What is known of the row once its tokens at `path` of those written are committed."""
        piece = self._written.get(row)
        if piece is None or not piece.states:
            return deque()  # what was not seen leaves a gap
        pieces, kept = deque(self._committed.get(row, ())), piece.at(path)
        if not kept.count:
            return pieces
        pieces.append(kept)
        excess = sum(piece.count for piece in pieces) - self.num_tokens
        while excess >= pieces[0].count:
            excess -= pieces.popleft().count
        if excess > self.num_tokens // 2:  # not each time: it costs a copy
            pieces[0] = pieces[0].newest(pieces[0].count - excess)
        return pieces

    def read(self, row: int, layer: int) -> NewestQueries | None:
        """None where nothing is known of the row's newest token in this layer."""
        pieces = self._committed.get(row)
        if not pieces or any(layer not in piece.states for piece in pieces):
            return None
        states = torch.cat([piece.states[layer] for piece in pieces])[-self.num_tokens :]
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
        return sum(piece.num_bytes for piece in pieces)

    def most_bytes(self, row: int) -> int:
        """Bytes that the row's queries will take, those of half as many older ones included."""
        pieces = self._committed.get(row)
        if not pieces:
            return 0
        return (self.num_tokens + self.num_tokens // 2) * pieces[-1].num_bytes // pieces[-1].count
