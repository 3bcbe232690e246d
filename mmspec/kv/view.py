"""KVView: a small selection of another cache's rows, as a cache that the same model can run on.

    source row  | 0 1 2 3 4 5 6 7 8 ... 97 98 99 | 100 101 |
    chosen        ^ ^       ^   ^       ^  ^  ^   (by layer, and by KV head where the policy says)
    view row    | 0 1 5 7 97 98 99 | 100 101 | draft ...   |
                  chosen at the      recent:   room for nodes that
                  last refresh       joined    are never committed

Keys are rotated already, so they are gathered as they are; a token drafted behind the view has the
position that it has in the text (`num_hidden` more than its slot). Slots are in the order of the
text, and a layer with a window shows the newest tokens alone: there a distance in slots is one in
positions, and the model's own window cuts it where it cuts the text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.kv.cache import KVCache
from mmspec.kv.layer import FlatLayer
from mmspec.kv.policies import LayerState, Policy

_GROWTH = 1.25  # a view that may be this much larger is opened anew
_LEAST_CHOSEN = 8  # tokens below which a view is not worth looking at


@dataclass(frozen=True)
class ViewSize:
    """How much of a row is shown, in tokens."""

    budget: int  # that the policy chooses
    recent: int  # committed since, before it has to choose anew
    room: int  # for nodes of a draft
    max_share: float = 1.0  # of the source row's bytes, all of the above together

    def chosen(self, length: int, *, logged: int = 0) -> int:
        """Tokens chosen of a row of `length`, whose queries take as much as `logged` tokens; 0
        where that is not worth while."""
        share = int(length * self.max_share) - self.recent - self.room - logged
        chosen = min(self.budget, length, share if self.max_share < 1.0 else length)
        return chosen if chosen >= min(_LEAST_CHOSEN, self.budget, length) else 0


@dataclass
class _Shown:
    """What a view row shows of its source row."""

    row: int
    chosen: int  # tokens that the policy chooses
    seen: int = 0  # committed tokens of the source row that the view knows of
    epoch: int = -1  # of the source row at that time; -1: nothing was chosen yet
    updates: int = 0  # verifications since the last refresh
    shown: int = 0  # tokens of the view row that are the source row's


class KVView(KVCache):
    """Read-only towards its source: it gathers, and never writes there. Rows are followed by their
    numbers in the source; `row_of` tells a row's number here."""

    def __init__(
        self,
        source: KVCache,
        policy: Policy,
        size: ViewSize,
        *,
        newest_only: Sequence[bool] = (),
    ) -> None:
        """`newest_only[i]`: layer i looks back through a window, and is shown the newest tokens
        whatever the policy."""
        pool = None if source.pool is None else source.pool.views
        super().__init__(
            len(source.flat_layers),
            pool=pool,
            cross_layers=source.cross.layers,
            states=source.state_kinds,
        )
        self.source = source
        self.policy = policy
        self.size = size
        self._newest_only = tuple(newest_only) or (False,) * len(source.flat_layers)
        self.token_bytes = 0  # of one token's keys and values in all layers, once a row is followed
        self._shown: dict[int, _Shown] = {}  # by source row
        self._media: dict[int, Sequence[range]] = {}  # of the rows that are followed

    # Rows

    def follow(self, source_row: int, *, media: Sequence[range] = ()) -> None:
        """The row, which holds its prompt, will be asked for; nothing is gathered before the first
        `catch_up`."""
        self._media[source_row] = media
        self.token_bytes = sum(
            math.prod(buffer.shape[1:]) * buffer.element_size() for buffer in self.source.buffers
        )

    def unfollow(self, source_row: int) -> None:
        """Frees the row's slots; the last row gives the memory back."""
        self._media.pop(source_row, None)
        shown = self._shown.pop(source_row, None)
        if shown is not None:
            self.close(shown.row)
        if not self._shown:
            self.release()

    @property
    def followed(self) -> tuple[int, ...]:
        """The source rows."""
        return tuple(self._media)

    def row_of(self, source_row: int) -> int:
        return self._shown[source_row].row

    def num_hidden(self, source_row: int) -> int:
        """Committed tokens of the source row that are not shown: what must be added to a slot's
        index to have its index in the text, behind the view's end."""
        return self.source.length(source_row) - self.length(self.row_of(source_row))

    # Keeping up

    def catch_up(self, source_row: int) -> bool:
        """Shows what is committed now: newer tokens join, or all is chosen anew where they have no
        room, the policy's time has come, or the source row was cut. False: the row is too short to
        be worth a view. Must be called before each draft, after each commit."""
        length, shown = self.source.length(source_row), self._shown.get(source_row)
        if shown is None or self._has_outgrown(source_row, shown, length):
            shown = self._open(source_row, length)
            if shown is None:
                return False
        if self._is_due(source_row, shown, length):
            self._refresh(source_row, shown)
        elif shown.seen < length:
            self._join(source_row, shown, shown.seen, length)
            shown.updates += 1
        shown.seen, shown.epoch = length, self.source.epoch(source_row)
        shown.shown = self.length(shown.row)
        self._share_state(source_row, shown)
        return True

    def truncate(self, row: int, length: int) -> None:
        """As in any cache; back at what is the source row's, the running state is too."""
        super().truncate(row, length)
        for source_row, shown in self._shown.items():
            if shown.row == row and length and length == shown.shown:
                self._share_state(source_row, shown)

    def _share_state(self, source_row: int, shown: _Shown) -> None:
        """A running state has seen the whole text, whatever is shown of the keys."""
        if self.states is not None and self.source.states is not None:
            self.states.share(shown.row, self.source.states, source_row)

    def due_bytes(self, source_row: int) -> int:
        """Bytes that the next `catch_up` reads and writes to choose anew; 0 where at most newer
        tokens join, or the row is too short to be worth a view."""
        length, shown = self.source.length(source_row), self._shown.get(source_row)
        if shown is None or self._has_outgrown(source_row, shown, length):
            chosen = self.size.chosen(length, logged=self._logged_tokens(source_row))
        elif self._is_due(source_row, shown, length):
            chosen = shown.chosen
        else:
            return 0
        if not chosen:  # asked at every step of a short text
            return 0
        # All keys, half of the row's bytes, are looked at; what is chosen is read and written.
        return self.token_bytes * (length + 4 * chosen) // 2

    @property
    def lasts_tokens(self) -> int:
        """Tokens of text after which all is chosen anew, at the latest."""
        every = self.policy.refresh_every
        return self.size.recent if every is None else min(self.size.recent, every)

    def _open(self, source_row: int, length: int) -> _Shown | None:
        old = self._shown.pop(source_row, None)
        if old is not None:
            self.close(old.row)
        chosen = self.size.chosen(length, logged=self._logged_tokens(source_row))
        if not chosen:
            if self.source.queries is not None:  # nor shall they take memory
                self.source.queries.forget(source_row)
            return None
        row = self.open(chosen + self.size.recent + self.size.room)
        self.cross.share(row, self.source.cross, source_row)
        self._shown[source_row] = shown = _Shown(row, chosen)
        return shown

    def _logged_tokens(self, source_row: int) -> int:
        """Tokens whose keys and values take as much as the row's queries in the source's log."""
        log = self.source.queries
        if log is None:
            return 0
        return -(-log.most_bytes(source_row) // max(self.token_bytes, 1))

    def _has_outgrown(self, source_row: int, shown: _Shown, length: int) -> bool:
        """A view that had to be small while its text was short, or is larger than its text now."""
        if shown.chosen < self.size.budget:
            affordable = self.size.chosen(length, logged=self._logged_tokens(source_row))
            if affordable > shown.chosen * _GROWTH:
                return True
        return length < shown.chosen

    def _is_due(self, source_row: int, shown: _Shown, length: int) -> bool:
        recent = self.length(shown.row) - shown.chosen
        is_cut = shown.epoch != self.source.epoch(source_row)
        if is_cut or recent + length - shown.seen > self.size.recent:
            return True
        every = self.policy.refresh_every
        return every is not None and length > shown.seen and shown.updates + 1 >= every

    def _refresh(self, source_row: int, shown: _Shown) -> None:
        region, of = self._regions.rows[shown.row], self.source.region(source_row)
        self.truncate(shown.row, 0)
        shown.epoch = -1  # until all is chosen: there may be no memory for it
        for index, layer, own in self._layers():
            keys, values = (t[of.start : of.start + of.length] for t in (layer.keys, layer.values))
            chosen = self._choose(index, source_row, keys, shown)
            assert chosen.shape[1] == shown.chosen, f"{chosen.shape[1]} of {shown.chosen} tokens"
            own.put(region.start, _gather(keys, chosen), _gather(values, chosen))
        region.length, shown.updates = shown.chosen, 0

    def _choose(self, index: int, source_row: int, keys: Tensor, shown: _Shown) -> Tensor:
        if self._newest_only[index]:
            length = keys.shape[0]
            newest = torch.arange(length - shown.chosen, length, device=keys.device)
            return newest.unsqueeze(0)
        log = self.source.queries
        queries = None if log is None else log.read(source_row, index)
        return self.policy.choose(LayerState(keys, queries, self._media[source_row]), shown.chosen)

    def _join(self, source_row: int, shown: _Shown, start: int, stop: int) -> None:
        region, of = self._regions.rows[shown.row], self.source.region(source_row)
        first, last = of.start + start, of.start + stop
        for _, layer, own in self._layers():
            own.put(region.start + region.length, layer.keys[first:last], layer.values[first:last])
        self._written.pop(shown.row, None)  # the last draft's nodes are overwritten
        region.length += stop - start

    def _layers(self) -> Iterator[tuple[int, FlatLayer, FlatLayer]]:
        """(index into the model's layers, the source's, the view's) of each that keeps keys."""
        pairs = zip(self.source.flat_layers, self.flat_layers, strict=True)
        for index, (layer, own) in enumerate(pairs):
            if layer.is_initialized:
                yield index, layer, own


def _gather(states: Tensor, chosen: Tensor) -> Tensor:
    """(chosen, kv_heads, head_dim) of `states` (tokens, kv_heads, head_dim)."""
    if chosen.shape[0] == 1:
        return states.index_select(0, chosen[0])
    return states[chosen.T, torch.arange(states.shape[1], device=states.device)]
