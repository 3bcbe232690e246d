"""Section `attention`: what each backend of the ladder takes for a call, by shape."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmspec.attention.rung import Rung
from mmspec.gpu_check import tree_cells
from mmspec.gpu_check.backends import backends, chosen
from mmspec.gpu_check.clock import Clock, Work
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.tree_cells import Call, Cell

_GROUPS = ((8, 4), (4, 7), (32, 1), (8, 8))  # (KV heads, query heads of each)
_CONTEXTS = (4096, 32_768, 131_072)
_NODES = (1, 8, 16, 32, 64, 128)
# Nodes x group, and how near to the quickest the ladder's choice has to be up to there.
_FACTORS = ((64, 0.9), (1 << 30, 0.7))


def check(setting: Setting, recorder: Recorder) -> None:
    """One row a shape; the ladder's choice must be the quickest, but for chance."""
    table: list[dict[str, object]] = []
    rungs = backends(recorder)
    for cell in _cells(setting):
        if setting.left_s < 10:
            recorder.missing("attention: no time left for all shapes")
            break
        size = 4 * cell.rows * cell.kv_heads * cell.head_dim * cell.prefix
        if not setting.has_memory(size):
            recorder.missing(f"attention, {cell.text}: no room")
            continue
        call = tree_cells.build(cell, setting.device)
        times = _times(call, rungs, setting, recorder, cell)
        own = chosen(call)
        best = min(times, key=lambda name: times[name])
        table.append({"shape": cell.text, "us": times, "chosen": own, "best": best})
        if setting.is_cuda and own in times:
            most = next(f for nodes, f in _FACTORS if cell.nodes * cell.group <= nodes)
            recorder.check(
                times[own] * most <= times[best],
                f"attention, {cell.text}: {own} takes {times[own]:.0f} us, {best} "
                f"{times[best]:.0f}",
            )
        recorder.found("table", table)


def _cells(setting: Setting) -> Iterator[Cell]:
    if setting.is_small:
        usual = replace(next(tree_cells.cells(setting)), prefix=200)
        yield from (replace(usual, nodes=nodes) for nodes in (1, 6))
        return
    for kv_heads, group in _GROUPS:
        for context in _CONTEXTS:
            for nodes in _NODES:
                yield Cell(prefix=context, nodes=nodes, kv_heads=kv_heads, group=group)
    for nodes in _NODES:
        yield Cell(prefix=32_768, nodes=nodes, kv_heads=8, group=4, rows=8)


def _times(
    call: Call, rungs: Sequence[Rung], setting: Setting, recorder: Recorder, cell: Cell
) -> dict[str, float]:
    """Microseconds of each backend that takes the call."""
    works = {}
    for rung in rungs:
        try:
            if call.by(rung) is not None:
                works[rung.name] = _work(call, rung)
        except Exception as error:  # said, and in the section `kernels` too
            recorder.check(False, f"{rung.name}, {cell.text}: {type(error).__name__}: {error}")
    clock = Clock(setting.device, rounds=3 if setting.is_small else 9, limit_s=0.5)
    return {name: ms * 1e3 for name, ms in clock.medians_ms(works).items()}


def _work(call: Call, rung: Rung) -> Work:
    return lambda: call.by(rung)
