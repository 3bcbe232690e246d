"""TreeCall: what the attention of one score call must know beside queries, keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention.homes import Homes
from mmspec.attention.reach import Reach
from mmspec.attention.tensors import TreeTensors
from mmspec.kv import FlatLayer
from mmspec.uploads import upload

if TYPE_CHECKING:
    from mmspec.attention.bitwise import CallPaths


@dataclass(frozen=True)
class RowNodes:
    """One row: its committed tokens, and behind them its tail, which ends with the nodes."""

    start: int  # first slot of the row's region
    committed: int  # tokens that every node sees, as far as its layer reaches
    visible: NDArray[np.bool_]  # (nodes, tail): which of the tail each node sees
    depths: NDArray[np.int64]  # (tail,) position of each tail token - committed

    @property
    def num_nodes(self) -> int:
        return self.visible.shape[0]

    @property
    def num_columns(self) -> int:
        return self.committed + self.visible.shape[1]

    def prefix_of(self, buffer: Tensor) -> Tensor:
        """Its committed tokens in keys or values, (committed, kv_heads, head_dim); no copy."""
        return buffer.narrow(0, self.start, self.committed)

    def first_column(self, reach: Reach) -> int:
        """The first column that any node sees."""
        if reach.is_full:
            return 0
        positions = self.committed + self.depths[-self.num_nodes :]
        return min(int(reach.first_visible(positions).min()), self.committed)

    def seen(self, reach: Reach) -> NDArray[np.bool_]:
        """(nodes, columns from the first visible one on)"""
        first = self.first_column(reach)
        prefix = np.ones((self.num_nodes, self.committed - first), dtype=np.bool_)
        seen = np.concatenate([prefix, self.visible], axis=1)
        if reach.is_full:
            return seen
        tail = self.committed + self.depths
        columns = np.concatenate([np.arange(first, self.committed), tail])
        # Windows count positions in the text, not slots: siblings share one.
        return seen & (columns >= reach.first_visible(tail[-self.num_nodes :])[:, None])


class Prefixes(NamedTuple):
    """Where the rows' committed tokens lie, on a device and in the form that kernels of others
    take: each int32, and (batch,) but for the bounds."""

    bounds: Tensor  # (batch + 1,) the starts, and a number that is not read
    stops: Tensor
    buffer: Tensor  # 0 for all rows: they are in the same buffer

    @property
    def starts(self) -> Tensor:
        return self.bounds[:-1]


class Part(NamedTuple):
    """Neighbouring slots that the nodes of a row attend to in one piece."""

    first: int
    stop: int
    mask: Tensor | None  # additive (group * nodes, slots), the nodes of a head together


@dataclass
class TreeCall:
    """The rows of one score call, and the masks that its layers share.

    Travels as a keyword through the model's forward into every layer's attention, so that nothing
    is kept on the model and several threads never meet.
    """

    rows: Sequence[RowNodes]  # (batch,)
    layers: Sequence[FlatLayer]  # the cache's, by layer index
    reaches: Sequence[Reach]  # by layer index
    backend: str = "auto"  # the rung that is asked first, by its name
    # For a graph, and in bitwise mode: the rows as tensors, whose values change from replay to
    # replay, and the most columns that a row of them may have. A graph does not read `rows`.
    prepared: TreeTensors | None = None
    max_columns: int = 0
    paths: "CallPaths | None" = None  # in bitwise mode
    num_attended: int = 0  # layers so far
    is_early: bool = False  # our kernels begin before the one ahead has ended, as those around do
    # Entries of a mask; a longer prefix is attended to without one, apart from the tail.
    most_mask: ClassVar[int] = 2**22
    _tensors: dict[torch.device, TreeTensors] = field(default_factory=dict)
    _prefixes: dict[tuple[torch.device, bool], Prefixes] = field(default_factory=dict)
    _parts: dict[tuple[object, ...], list[Part]] = field(default_factory=dict)
    _dense: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prepared is None:
            self.max_columns = max((row.num_columns for row in self.rows), default=0)

    @cached_property
    def homes(self) -> Homes:
        return Homes(self.layers)

    @property
    def is_single(self) -> bool:
        """One row, whose lengths are known here."""
        return self.prepared is None and len(self.rows) == 1

    @property
    def may_have_prefix(self) -> bool:
        return self.prepared is not None or any(row.committed for row in self.rows)

    def tensors(self, device: torch.device) -> TreeTensors:
        """The rows as kernels read them, made once for all layers on the device."""
        if device not in self._tensors:
            given = self.prepared
            made = TreeTensors.of(self.rows, device) if given is None else given.on(device)
            self._tensors[device] = made
        return self._tensors[device]

    def prefixes(self, device: torch.device) -> Prefixes:
        """The rows' prefixes, likewise; computed on the device, so that a graph computes them anew
        in each replay. Those of a warm-up would stay as they were: a capture makes its own, and
        wants a TreeCall of its own where there are several."""
        is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        key = (device, is_captured)
        if key not in self._prefixes:
            tensors = self.tensors(device)
            bounds = torch.nn.functional.pad(tensors.starts.int(), (0, 1))
            stops = bounds[:-1] + tensors.committed
            self._prefixes[key] = Prefixes(bounds, stops, torch.zeros_like(stops))
        return self._prefixes[key]

    def parts(self, row: int, reach: Reach, group: int, like: Tensor) -> list[Part]:
        """What the nodes of a row attend to. The mask is additive, in the dtype and place of
        `like`, and repeated for the `group` of query heads that share a KV head."""
        key = (row, reach, group, like.dtype)
        if key not in self._parts:
            self._parts[key] = self._cut(self.rows[row], reach, group, like)
        return self._parts[key]

    def mask(self, row: int, reach: Reach, device: torch.device) -> Tensor:
        """Which columns the nodes of a row see, from the first visible one on: bool (nodes,
        columns)."""
        key = (row, reach, device)
        if key not in self._dense:
            self._dense[key] = upload(self.rows[row].seen(reach), device)
        return self._dense[key]

    def dense_mask(self, reach: Reach, like: Tensor) -> Tensor:
        """The same as a mask for a model's own attention over the padded view: additive,
        (batch, 1, nodes, columns). A padding node sees its row's first token alone."""
        key = (reach, like.dtype)
        if key not in self._dense:
            nodes = max(row.num_nodes for row in self.rows)
            columns = max(row.num_columns for row in self.rows)
            seen = np.zeros((len(self.rows), 1, nodes, columns), dtype=np.bool_)
            for index, row in enumerate(self.rows):
                first = row.first_column(reach)
                seen[index, 0, : row.num_nodes, first : row.num_columns] = row.seen(reach)
                seen[index, 0, row.num_nodes :, 0] = True
            self._dense[key] = _additive(seen, like)
        return self._dense[key]

    def _cut(self, row: RowNodes, reach: Reach, group: int, like: Tensor) -> list[Part]:
        first, border = row.start + row.first_column(reach), row.start + row.committed
        stop = row.start + row.num_columns
        # Node 0 alone sees all from the first visible one on, and so may several that see a prefix.
        if row.visible.shape == (1, 1) or (reach.is_full and row.visible.all()):
            return [Part(first, stop, None)]
        if not reach.is_full or group * row.num_nodes * (stop - first) <= self.most_mask:
            return [Part(first, stop, self._mask(row, reach, group, like))]
        tail = Part(border, stop, self._mask(row, None, group, like))
        return [Part(first, border, None), tail] if first < border else [tail]

    def _mask(self, row: RowNodes, reach: Reach | None, group: int, like: Tensor) -> Tensor:
        """Over the row's columns within the reach; None: over its tail alone."""
        seen = row.visible if reach is None else row.seen(reach)
        return _additive(seen, like).repeat(group, 1)


def _additive(seen: NDArray[np.bool_], like: Tensor) -> Tensor:
    """0 where seen, the dtype's minimum elsewhere: -inf would make NaN of a part that a node does
    not see at all."""
    hidden = upload(~seen, like.device)
    mask = like.new_zeros(hidden.shape)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min)
