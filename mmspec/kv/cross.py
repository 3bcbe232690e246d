"""What a row reads beside its tokens: keys and values of its images in cross-attention layers.

They are written once, by the forward that reads the images, and every token of the row looks at the
same ones: no commit moves them, no rollback forgets them, and they go with the row.

    tokens   | prompt ... | node 0 | node 1 |     layers of the text: see `cache`
    cells    | tile 0 | tile 1 | tile 2 |         layers of cross-attention: here
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import CacheLayerMixin


class CrossLayer(CacheLayerMixin):
    """One layer's, as a transformers cache layer: `keys` and `values` are those of the rows that
    are shown, (batch, kv_heads, states, head_dim), or None where none of them has any."""

    def __init__(self) -> None:
        super().__init__()
        self.of_row: dict[int, tuple[Tensor, Tensor]] = {}  # each (1, kv_heads, states, head_dim)
        self._shown: tuple[int, ...] = ()
        self._joined: tuple[tuple[int, ...], Tensor, Tensor] | None = None  # of the last batch

    def show(self, rows: Sequence[int]) -> None:
        """Until the next call a forward reads what these rows have, in this order. Short ones are
        padded with zeros, which no one sees; a row without any has zeros alone, and values of zero
        add nothing to it."""
        self._shown = tuple(rows)
        self.is_initialized = any(row in self.of_row for row in rows)
        if not self.is_initialized:
            self.keys = self.values = None  # as an empty cache layer
        elif len(rows) == 1:
            self.keys, self.values = self.of_row[rows[0]]
        else:
            if self._joined is None or self._joined[0] != self._shown:
                self._joined = (self._shown, self._padded(0), self._padded(1))
            _, self.keys, self.values = self._joined

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keeps what the one row that is shown reads from now on."""
        assert len(self._shown) == 1, f"one row's images at a time, got rows {self._shown}"
        self.of_row[self._shown[0]] = key_states, value_states
        self.show(self._shown)
        return key_states, value_states

    def forget(self, row: int) -> None:
        self.of_row.pop(row, None)
        if self._joined is not None and row in self._joined[0]:
            self._joined = None

    def _padded(self, which: int) -> Tensor:
        """Keys (0) or values (1) of the rows that are shown."""
        found = [self.of_row[row][which] for row in self._shown if row in self.of_row]
        longest, none = max(states.shape[2] for states in found), found[0][:, :, :0]
        each = [self.of_row[row][which] if row in self.of_row else none for row in self._shown]
        return torch.cat([pad(states, (0, 0, 0, longest - states.shape[2])) for states in each])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to allocate."""

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        return -1


class CrossStates:
    """All cross-attention layers of a cache, and which cells (tiles of its images) a row's newest
    token sees; those behind it see the same."""

    def __init__(self, layers: Collection[int]) -> None:
        """`layers`: indices into the model's layers."""
        self.layers = {index: CrossLayer() for index in layers}
        self._seen: dict[int, Tensor] = {}  # row -> (cells,) bool, on the model's device
        self._joined: tuple[tuple[int, ...], Tensor] | None = None

    def holds(self, row: int) -> bool:
        """Whether the row's images were read."""
        return any(row in layer.of_row for layer in self.layers.values())

    def show(self, rows: Sequence[int]) -> None:
        for layer in self.layers.values():
            layer.show(rows)

    def see(self, row: int, cells: Tensor) -> None:
        """From now on the row's tokens see these cells, (cells,) bool."""
        self._seen[row] = cells
        self._joined = None

    def seen(self, rows: Sequence[int]) -> Tensor | None:
        """(batch, cells) bool, False behind a row's last cell; None where no row has any."""
        if not any(row in self._seen for row in rows):
            return None
        if self._joined is None or self._joined[0] != tuple(rows):
            found = [self._seen[row] for row in rows if row in self._seen]
            most, none = max(len(cells) for cells in found), found[0][:0]
            each = [self._seen.get(row, none) for row in rows]
            joined = torch.stack([pad(cells, (0, most - len(cells))) for cells in each])
            self._joined = tuple(rows), joined
        return self._joined[1]

    def share(self, row: int, source: "CrossStates", source_row: int) -> None:
        """The row reads what another cache's row does; nothing is copied."""
        if source_row not in source._seen:
            return
        self.see(row, source._seen[source_row])
        for index, layer in self.layers.items():
            layer.of_row[row] = source.layers[index].of_row[source_row]

    def forget(self, row: int) -> None:
        """The row was closed."""
        self._seen.pop(row, None)
        self._joined = None
        for layer in self.layers.values():
            layer.forget(row)

    def clear(self) -> None:
        for row in {*self._seen, *(row for f in self.layers.values() for row in f.of_row)}:
            self.forget(row)

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows' keys and values, and of those of the last batch."""
        held = [t for f in self.layers.values() for pair in f.of_row.values() for t in pair]
        joined = [t for f in self.layers.values() if f._joined is not None for t in f._joined[1:]]
        return sum(tensor.nbytes for tensor in (*held, *joined))
