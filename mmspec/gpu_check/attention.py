"""Section `attention`: what each backend of the ladder takes for a call, by shape."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from mmspec.attention.rung import Rung
from mmspec.gpu_check.backends import backends
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import GpuLost, Setting

_GROUPS = ((8, 4), (4, 7), (32, 1))  # (KV heads, query heads of each)
_CONTEXTS = (4096, 32_768, 131_072)
_NODES = (1, 8, 16, 32, 64, 128)
_INTERPRETED = ("triton",)  # on a CPU: it has no speed there


@dataclass(frozen=True)
class Timed:
    """One shape: microseconds of each backend that takes it."""

    shape: str
    pairs: int  # nodes x query heads of a KV head
    us: dict[str, float]
    chosen: str  # by the ladder
    best: str
    eager: tuple[str, ...]  # not in a graph: their host time is counted too


def check(setting: Setting, recorder: Recorder) -> None:
    """One row a shape."""
    bench = _bench()
    if bench is None:
        recorder.missing("attention: scripts/bench_attention.py, which a checkout has")
        return
    rungs = {
        rung.name: rung
        for rung in backends(setting, recorder)
        if setting.is_cuda or rung.name not in _INTERPRETED
    }
    table: list[Timed] = []
    for shape in _shapes(bench, setting):
        if lacking := setting.lacks(seconds=10):
            recorder.missing(f"attention of all shapes: {lacking}")
            break
        what = f"attention, {_text(shape)}"
        if lacking := setting.lacks(num_bytes=8 * shape.kv_bytes(torch.bfloat16)):
            recorder.missing(f"{what}: {lacking}")
            continue
        with recorder.attempt(what):
            table.append(_timed(bench, shape, rungs, setting, recorder))
        recorder.found("table", table)


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


def _timed(
    bench: Any, shape: Any, rungs: Mapping[str, Rung], setting: Setting, recorder: Recorder
) -> Timed:
    def begins(backend: str) -> None:
        if setting.is_lost:  # by the one before
            raise GpuLost(f"after attention by {recorder.result.doing}, {_text(shape)}")
        recorder.doing(backend)

    row = bench.measure(
        shape,
        rungs,
        rounds=2 if setting.is_small else 9,
        repeats=1 if setting.is_small else 3,
        dtype=setting.dtype,
        device=setting.device,
        told=begins,
    )
    recorder.doing(None)
    text = _text(shape)
    for entry in row.timed:
        what = f"attention by {entry.backend}, {text}: {entry.reason}"
        recorder.check(entry.verdict != "failed", what)
    ran = {entry.backend: entry for entry in row.timed if entry.samples_us}
    times = {name: entry.median_us for name, entry in ran.items()}
    eager = tuple(name for name, entry in ran.items() if not entry.is_captured)
    pairs = shape.nodes * shape.group
    return Timed(text, pairs, times, row.ladder, min(times, key=lambda name: times[name]), eager)


def _shapes(bench: Any, setting: Setting) -> Iterator[Any]:
    """Of `bench`: context, nodes, group, batch, KV heads and head size."""
    if setting.is_small:
        yield from (bench.Shape(200, nodes, 4, 1, 2, 32) for nodes in (1, 6))
        return
    for context in _CONTEXTS:
        for kv_heads, group in _GROUPS:
            for nodes in _NODES:
                yield bench.Shape(context, nodes, group, 1, kv_heads, 128)
    for nodes in _NODES:
        yield bench.Shape(32_768, nodes, 4, 8, 8, 128)


def _text(shape: Any) -> str:
    return (
        f"{shape.batch} x {shape.context} tokens, {shape.nodes} nodes, "
        f"{shape.kv_heads} x {shape.group} heads"
    )
