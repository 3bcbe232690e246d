"""Tree attention, each backend of the ladder beside a reference in float64."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmspec.attention import LayerRule, RowNodes, TreeCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import Rung
from mmspec.gpu_check.setting import Setting
from mmspec.kv import FlatLayer

# Of the output's norm: float32 sums in another order; products of bfloat16 numbers, merged.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Cell:
    """One call. Rows are ragged: each has less committed, and fewer nodes, than the one before."""

    prefix: int = 1000
    nodes: int = 16
    kv_heads: int = 2
    group: int = 4
    head_dim: int = 128
    rows: int = 1
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def text(self) -> str:
        """What of it is not the usual."""
        usual = asdict(Cell())
        own = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return ", ".join(f"{name} {value}" for name, value in own.items()) or "the usual"


def cells(setting: Setting) -> Iterator[Cell]:
    """One thing at a time changed, and some pairs that meet in practice."""
    usual = Cell() if setting.is_cuda else Cell(dtype=torch.float32)
    if setting.is_small:
        usual = replace(usual, prefix=70, head_dim=32, nodes=5)
        for change in ({}, {"prefix": 0}, {"group": 7, "rows": 2}, {"window": 9}, {"softcap": 5.0}):
            yield replace(usual, **change)
        return
    for prefix in (0, 1, 255, 256, 257, 4096, 65_536):
        for nodes in (1, 64):
            yield replace(usual, prefix=prefix, nodes=nodes)
    for nodes in (2, 15, 17, 63, 65, 128):
        yield replace(usual, nodes=nodes)
    for group in (1, 7, 8):
        for nodes in (1, 16, 128):
            yield replace(usual, group=group, nodes=nodes, rows=3)
    for head_dim in (64, 80, 96, 256):
        yield replace(usual, head_dim=head_dim)
    for special in ({"window": 100}, {"softcap": 20.0}, {"has_sinks": True}):
        yield replace(usual, **special)
        yield replace(usual, **special, rows=3, prefix=5000)
    yield replace(usual, dtype=torch.float32)
    yield replace(usual, dtype=torch.float16)


@dataclass(frozen=True)
class Call:
    """A cell's tensors."""

    query: Tensor  # (batch, heads, nodes, head_dim)
    layer: FlatLayer
    call: TreeCall
    rule: LayerRule

    def by(self, rung: Rung) -> Tensor | None:
        """(batch, nodes, heads, head_dim); None where the backend declines the call."""
        keys, values = self.layer.keys, self.layer.values
        if not rung.can_attend(self.query, keys, values, rule=self.rule):
            return None
        return rung.attend(self.query, keys, values, call=self.call, rule=self.rule)


def build(cell: Cell, device: torch.device, *, seed: int = 0) -> Call:
    """Random queries, keys and values, and a random tree a row. Slots that no row may read hold
    large numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    rng = np.random.default_rng(seed)
    rows, start = [], 3
    for index in range(cell.rows):
        nodes, committed = max(cell.nodes - 3 * index, 1), cell.prefix // (index + 1)
        rows.append(_row(rng, start, committed, nodes))
        start += committed + nodes + 5
    layer = FlatLayer()
    layer.keys, layer.values = (
        _drawn(generator, device, start, cell.kv_heads, cell.head_dim).to(cell.dtype)
        for _ in range(2)
    )
    layer.is_initialized, layer.num_slots = True, start
    unread = torch.ones(start, dtype=torch.bool)
    for row in rows:
        unread[row.start : row.start + row.num_columns] = False
    for buffer in (layer.keys, layer.values):
        buffer[unread.to(device)] = 1e3
    heads = cell.kv_heads * cell.group
    query = _drawn(generator, device, cell.rows, heads, cell.nodes, cell.head_dim).to(cell.dtype)
    sinks = _drawn(generator, device, heads).to(cell.dtype) if cell.has_sinks else None
    rule = LayerRule(Reach(window=cell.window), cell.head_dim**-0.5, cell.softcap, sinks)
    return Call(query, layer, TreeCall(rows, [layer], [rule.reach]), rule)


def reference(call: Call) -> list[Tensor]:
    """Of each row (nodes, heads, head_dim), float64."""
    outs = []
    for index, row in enumerate(call.call.rows):
        slots = slice(row.start, row.start + row.num_columns)
        keys, values = (t[slots].double() for t in (call.layer.keys, call.layer.values))
        query = call.query[index, :, : row.num_nodes].double()
        group = query.shape[0] // keys.shape[1]
        keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
        scores = torch.einsum("hnd,khd->hnk", query, keys) * call.rule.scaling
        if call.rule.softcap is not None:
            scores = torch.tanh(scores / call.rule.softcap) * call.rule.softcap
        hidden = torch.ones(row.num_nodes, row.num_columns, dtype=torch.bool)
        first = row.first_column(call.rule.reach)
        hidden[:, first:] = torch.from_numpy(~row.seen(call.rule.reach))
        scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        if call.rule.sinks is not None:
            sink = call.rule.sinks.double()[:, None, None].expand(-1, row.num_nodes, 1)
            weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            weights = scores.softmax(dim=-1)
        outs.append(torch.einsum("hnk,khd->nhd", weights, values))
    return outs


def error(got: Tensor, expected: Sequence[Tensor]) -> float:
    """The largest row's, relative to its norm; infinite for NaN."""
    errors = []
    for index, own in enumerate(expected):
        off = (got[index, : own.shape[0]].double() - own).norm() / own.norm()
        errors.append(float(off) if torch.isfinite(off) else float("inf"))
    return max(errors)


def _row(rng: np.random.Generator, start: int, committed: int, nodes: int) -> RowNodes:
    visible, depths = np.eye(nodes, dtype=np.bool_), np.zeros(nodes, dtype=np.int64)
    for node in range(1, nodes):
        parent = int(rng.integers(max(node - 6, 0), node))
        visible[node] |= visible[parent]
        depths[node] = depths[parent] + 1
    return RowNodes(start, committed, visible, depths)


def _drawn(generator: torch.Generator, device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=device)
