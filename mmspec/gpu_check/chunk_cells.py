"""A prompt's later chunk: attention behind a long text, beside all its scores in float32."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmspec.attention import ChunkCall, LayerRule, Reach
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.kv import FlatLayer

_HEADS, _KV_HEADS, _HEAD_DIM, _START, _ROWS = 8, 2, 128, 64, 512
_BOUND = 2.0**-6  # of bfloat16, beside a value, or 1 where it is smaller


@dataclass(frozen=True)
class _Cell:
    committed: int
    count: int
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False


_CELLS = (
    _Cell(8192, 4096),
    _Cell(8192, 1000, has_sinks=True),
    _Cell(3000, 700, softcap=30.0),
    _Cell(8192, 2048, window=1024, has_sinks=True),
    _Cell(5, 300),
    _Cell(4096, 7),
)


def check(setting: Setting, recorder: Recorder) -> None:
    errors: dict[str, float] = {}
    for cell in _CELLS:
        if setting.is_small:
            cell = replace(cell, committed=cell.committed // 64, count=cell.count // 16 + 1)
        error = errors[str(cell)] = _largest_error(cell, setting)
        recorder.found("chunks", errors)
        recorder.check(error <= _BOUND, f"attention of a chunk, {cell}: off by {error:.2g}")


def _largest_error(cell: _Cell, setting: Setting) -> float:
    generator = torch.Generator(setting.device).manual_seed(cell.committed)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=setting.device)
        return values.to(setting.dtype)

    slots = _START + cell.committed + cell.count
    keys, values = (drawn(slots, _KV_HEADS, _HEAD_DIM) for _ in "kv")
    query = drawn(1, _HEADS, cell.count, _HEAD_DIM)
    sinks = drawn(_HEADS).float() if cell.has_sinks else None
    rule = LayerRule(Reach(window=cell.window), _HEAD_DIM**-0.5, cell.softcap, sinks)
    call = ChunkCall(_START, cell.committed, cell.count, [FlatLayer()], [rule.reach])
    got, errors = call.attend(query, keys, values, rule=rule)[0].float(), list[Tensor]()
    for first in range(0, cell.count, _ROWS):  # the scores of a whole chunk would not fit
        rows = slice(first, min(first + _ROWS, cell.count))
        expected = _reference(query[0, :, rows], keys, values, cell.committed + first, rule)
        apart = (got[rows] - expected).abs() / expected.abs().clamp(min=1)
        errors.append(apart.max())
    return float(torch.stack(errors).max())  # NaN where any is


def _reference(query: Tensor, keys: Tensor, values: Tensor, begins: int, rule: LayerRule) -> Tensor:
    """(rows, heads, head_dim) of `query` (heads, rows, head_dim), whose first is token `begins`."""
    heads, rows, _ = query.shape
    stop, device = begins + rows, query.device
    key, value = (t[_START : _START + stop].float().transpose(0, 1) for t in (keys, values))
    folded = query.float().reshape(_KV_HEADS, -1, _HEAD_DIM)
    scores = (folded @ key.mT).reshape(heads, rows, stop) * rule.scaling
    if rule.softcap is not None:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    own, columns = (
        torch.arange(begins, stop, device=device)[:, None],
        torch.arange(stop, device=device),
    )
    hidden = (columns > own) | (columns <= own - (rule.reach.window or stop))
    scores = scores.masked_fill(hidden, -torch.inf)
    if rule.sinks is not None:
        sinks = rule.sinks.view(-1, 1, 1).expand(heads, rows, 1)
        scores = torch.cat([scores, sinks], dim=2)
    weights = scores.softmax(2)[:, :, :stop].reshape(_KV_HEADS, -1, stop)
    return (weights @ value).reshape(heads, rows, _HEAD_DIM).transpose(0, 1)
