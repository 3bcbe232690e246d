"""Section `attention`: what each backend of the ladder takes for a call, by shape."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from mmspec.attention.rung import Rung
from mmspec.gpu_check import tree_cells
from mmspec.gpu_check.backends import backends, chosen
from mmspec.gpu_check.clock import Clock, Work
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.tree_cells import Call, Cell

_GROUPS = ((8, 4), (4, 7), (32, 1))  # (KV heads, query heads of each)
_CONTEXTS = (4096, 32_768, 131_072)
_NODES = (1, 8, 16, 32, 64, 128)
_INTERPRETED = ("triton",)  # on a CPU: it has no speed there
# Nodes x group, and how near to the quickest the ladder's choice has to be up to there.
_FACTORS = ((64, 0.9), (1 << 30, 0.7))


@dataclass(frozen=True)
class Timed:
    """One shape: microseconds of each backend that takes it."""

    shape: str
    us: dict[str, float]
    chosen: str  # by the ladder
    best: str
    eager: tuple[str, ...]  # not in a graph: their host time is counted too


def check(setting: Setting, recorder: Recorder) -> None:
    """One row a shape; the ladder's choice must be the quickest, or near to it."""
    bench = _bench()
    rungs = [r for r in backends(recorder) if setting.is_cuda or r.name not in _INTERPRETED]
    table: list[Timed] = []
    for cell in _cells(setting):
        if setting.left_s < 10:
            recorder.missing("attention: no time left for all shapes")
            break
        size = 4 * cell.rows * cell.kv_heads * cell.head_dim * cell.prefix
        if not setting.has_memory(4 * size):
            recorder.missing(f"attention, {cell.text}: no room")
            continue
        with recorder.attempt(f"attention, {cell.text}"):
            if bench is None:
                timed = _by_clock(cell, rungs, setting, recorder)
            else:
                timed = _by_bench(bench, cell, rungs, setting)
            table.append(timed)
            _check_choice(timed, cell, setting, recorder)
        recorder.found("table", table)


def _check_choice(timed: Timed, cell: Cell, setting: Setting, recorder: Recorder) -> None:
    if not setting.is_cuda or timed.chosen not in timed.us:
        return
    own, best = timed.us[timed.chosen], timed.us[timed.best]
    most = next(factor for pairs, factor in _FACTORS if cell.nodes * cell.group <= pairs)
    recorder.check(
        own * most <= best,
        f"attention, {cell.text}: {timed.chosen} takes {own:.0f} us, {timed.best} {best:.0f}",
    )


def _bench() -> Any:
    """`scripts/bench_attention.py` of this checkout, which replays calls over many layers as one
    graph; None where there is none."""
    path = Path(__file__).parents[2] / "scripts" / "bench_attention.py"
    spec = spec_from_file_location("bench_attention", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        return None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


def _by_bench(bench: Any, cell: Cell, rungs: Sequence[Rung], setting: Setting) -> Timed:
    shape = bench.Shape(
        cell.prefix, cell.nodes, cell.group, cell.rows, cell.kv_heads, cell.head_dim
    )
    row = bench.measure(
        shape,
        {rung.name: rung for rung in rungs},
        rounds=2 if setting.is_small else 9,
        repeats=1 if setting.is_small else 3,
        dtype=cell.dtype,
        device=setting.device,
    )
    ran = {entry.backend: entry for entry in row.timed if entry.samples_us}
    times = {name: entry.median_us for name, entry in ran.items()}
    eager = tuple(name for name, entry in ran.items() if not entry.is_captured)
    return Timed(cell.text, times, row.ladder, min(times, key=lambda name: times[name]), eager)


def _by_clock(cell: Cell, rungs: Sequence[Rung], setting: Setting, recorder: Recorder) -> Timed:
    call = tree_cells.build(cell, setting.device)
    times = _times(call, rungs, setting, recorder, cell)
    best = min(times, key=lambda name: times[name])
    return Timed(cell.text, times, chosen(call), best, tuple(times))


def _cells(setting: Setting) -> Iterator[Cell]:
    if setting.is_small:
        usual = replace(next(tree_cells.cells(setting)), prefix=200)
        yield from (replace(usual, nodes=nodes) for nodes in (1, 6))
        return
    for context in _CONTEXTS:
        for kv_heads, group in _GROUPS:
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
