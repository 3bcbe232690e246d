"""What each attention backend takes for a score call's attention, by shape: one table of speeds.

    python scripts/bench_attention.py --out build/attention.json
    python scripts/bench_attention.py --contexts 4096 --nodes 1 64 --groups 4 --tiles

One layer, keys and values in flat buffers as a cache has them. On a GPU a graph of several calls
over different layers is replayed (more data than the second-level cache holds, as in a model) and
timed by events; backends that a graph cannot hold are called eagerly and say so, their host time
included. Backends are timed in turns; a figure is the median of the rounds. Every backend's result
is held against the reference of the conformance suite first: one that is wrong has no speed.

`--tiles` times block sizes of the Triton kernel other than those of its table.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmspec.attention import LayerRule, Reach, TreeCall
from mmspec.attention.conformance import Case, Inputs, build, check
from mmspec.attention.kernels.tiles import Tile
from mmspec.attention.ladder import RUNGS, order_for
from mmspec.attention.rung import Rung
from mmspec.attention.triton_tree import TritonTree
from mmspec.bench.harness import in_turns, write_report
from mmspec.bench.machine import this_machine

_CACHE_BYTES = 256 * 2**20  # of keys and values that a round reads, above any second-level cache
_MAX_CALLS = 32
_TILES = [
    Tile(m, n, warps, stages, resident)
    for m in (16, 32, 64, 128)
    for n in (32, 64, 128)
    for warps, stages, resident in ((4, 2, 2), (4, 3, 2), (4, 4, 1), (8, 2, 1), (8, 3, 1))
    if (m < 128 or warps == 8) and m * n <= 128 * 64
]


@dataclass(frozen=True)
class Shape:
    context: int  # committed tokens of each row
    nodes: int
    group: int  # query heads of a KV head
    batch: int
    kv_heads: int
    head_dim: int

    @property
    def case(self) -> Case:
        return Case(
            committed=(self.context,) * self.batch,
            nodes=(self.nodes,) * self.batch,
            kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.head_dim,
        )

    def kv_bytes(self, dtype: torch.dtype) -> int:
        tokens = self.batch * (self.context + self.nodes)
        return 2 * tokens * self.kv_heads * self.head_dim * dtype.itemsize


@dataclass
class Timed:
    """One backend at one shape."""

    backend: str
    verdict: str  # of the conformance suite
    is_captured: bool = False
    samples_us: list[float] | None = None  # of one call, a number a round
    reason: str = ""

    @property
    def median_us(self) -> float:
        return statistics.median(self.samples_us) if self.samples_us else float("inf")


@dataclass(frozen=True)
class Row:
    shape: Shape
    timed: list[Timed]
    kv_bytes: int
    ladder: str  # the backend that the default order picks

    def gigabytes_per_second(self, timed: Timed) -> float:
        return self.kv_bytes / timed.median_us / 1e3


Call = Callable[[], Tensor]
Layers = list[tuple[Tensor, Tensor]]


def layers_of(inputs: Inputs, num_bytes: int) -> Layers:
    """Keys and values of as many layers as a round reads."""
    count = min(max(_CACHE_BYTES // num_bytes, 1), _MAX_CALLS)
    copies = [(inputs.keys.clone(), inputs.values.clone()) for _ in range(count - 1)]
    return [(inputs.keys, inputs.values), *copies]


def calls_of(rung: Rung, inputs: Inputs, layers: Layers) -> list[Call]:
    """One call a layer. A graph's reads lengths on the device, as a captured step does."""
    rule = LayerRule(Reach(), inputs.rule.scaling)
    call = TreeCall(inputs.rows, (), ())  # what the rows are is found out once for all layers
    device = inputs.query.device
    if rung.is_graph_safe and device.type == "cuda":
        columns, tensors = call.max_columns, call.tensors(device)
        call = TreeCall([], (), (), prepared=tensors, max_columns=columns)
    return [
        lambda keys=keys, values=values: rung.attend(
            inputs.query, keys, values, call=call, rule=rule
        )
        for keys, values in layers
    ]


def captured(rung: Rung, calls: Sequence[Call]) -> "torch.cuda.CUDAGraph | None":
    """A graph of the calls, or None where the backend is not for one."""
    if not rung.is_graph_safe:
        return None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and fills caches, outside of the capture
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    finally:
        torch.cuda.set_stream(own)  # a capture that cannot be ended leaves its own
    return graph


def one_round(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Microseconds of one run."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return 1e6 * (time.perf_counter() - start) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return 1e3 * begin.elapsed_time(end) / repeats


def measure(
    shape: Shape,
    rungs: dict[str, Rung],
    *,
    rounds: int,
    repeats: int,
    dtype: torch.dtype,
    device: torch.device,
    told: Callable[[str], None] = lambda backend: None,
) -> Row:
    """`told`: by whom the shape is going to be computed for the first time."""
    inputs = build(shape.case, dtype=dtype, device=device)
    layers = layers_of(inputs, shape.kv_bytes(dtype))
    timed, runs = [], {}
    kept: dict[str, list[Call]] = {}
    for name, rung in rungs.items():
        if rung.missing():
            timed.append(Timed(name, "missing", reason=rung.missing()))
            continue
        told(name)
        outcome = check(rung, shape.case, dtype=dtype, device=device, inputs=inputs)
        entry = Timed(name, outcome.verdict, reason=outcome.reason)
        timed.append(entry)
        if outcome.verdict != "passed":
            continue
        calls = kept[name] = calls_of(rung, inputs, layers)
        try:
            graph = captured(rung, calls) if device.type == "cuda" else None
        except Exception as error:  # one that no graph holds costs no other's time
            entry.verdict, entry.reason = "failed", f"in a graph: {type(error).__name__}: {error}"
            continue
        entry.is_captured = graph is not None
        runs[name] = graph.replay if graph else lambda calls=calls: [call() for call in calls]
    samples = in_turns(
        list(runs), lambda name: one_round(runs[name], repeats, device) / len(kept[name]),
        rounds=rounds,
    )  # fmt: skip
    for entry in timed:
        entry.samples_us = samples.get(entry.backend)
    operands = (inputs.query, inputs.keys, inputs.values)
    order = [RUNGS[name] for name in order_for(inputs.query, shape.kv_heads)]
    picked = next(
        rung.name
        for rung in order
        if not rung.missing() and rung.can_attend(*operands, rule=inputs.rule)
    )
    return Row(shape, timed, shape.kv_bytes(dtype), picked)


def table_of(rows: Sequence[Row], names: Sequence[str]) -> Table:
    shown = [
        n for n in names if any(t.backend == n and t.samples_us for r in rows for t in r.timed)
    ]
    table = Table("context", "nodes", "group", "batch", *shown, "fastest", "ladder", "GB/s")
    for row in rows:
        by_name = {entry.backend: entry for entry in row.timed}
        ran = [entry for entry in row.timed if entry.samples_us]
        best = min(ran, key=lambda entry: entry.median_us)
        cells = []
        for name in shown:
            entry = by_name[name]
            text = entry.verdict if not entry.samples_us else f"{entry.median_us:.1f}"
            text += "" if entry.is_captured or not entry.samples_us else " *"
            cells.append(f"[bold]{text}[/]" if entry is best else text)
        shape = row.shape
        sizes = (shape.context, shape.nodes, shape.group, shape.batch)
        speed = f"{row.gigabytes_per_second(best):.0f}"
        table.add_row(*(str(size) for size in sizes), *cells, best.backend, row.ladder, speed)
    return table


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[4096, 32_768, 131_072] if has_gpu else [1024]
    )
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128] if has_gpu else [1, 8, 32]
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4, 7] if has_gpu else [4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8] if has_gpu else [1])
    parser.add_argument("--kv-heads", type=int, default=8 if has_gpu else 2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16" if has_gpu else "float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3, help="runs of all calls in a round")
    parser.add_argument("--backends", nargs="+", choices=sorted(RUNGS), default=list(RUNGS))
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/attention.json"))
    arguments = parser.parse_args()
    machine = this_machine(threads=torch.get_num_threads())
    device = torch.device("cuda" if has_gpu else "cpu")
    dtype = getattr(torch, arguments.dtype)
    rungs = {name: RUNGS[name] for name in arguments.backends}
    if not has_gpu:  # by its interpreter it has no speed
        rungs.pop("triton", None)
    elif arguments.tiles:
        rungs |= {
            f"{t.block_m}x{t.block_n} w{t.num_warps} s{t.num_stages} r{t.resident}": TritonTree(t)
            for t in _TILES
        }
    rows = [
        measure(
            Shape(context, nodes, group, batch, arguments.kv_heads, arguments.head_dim),
            rungs,
            rounds=arguments.rounds,
            repeats=arguments.repeats,
            dtype=dtype,
            device=device,
        )
        for context in arguments.contexts
        for batch in arguments.batches
        for group in arguments.groups
        for nodes in arguments.nodes
    ]
    report = {
        "device": torch.cuda.get_device_name() if has_gpu else platform.machine(),
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "rows": [asdict(row) for row in rows],
    }
    write_report(arguments.out, machine, report)
    console = Console()
    console.print(table_of(rows, list(rungs)))
    console.print(
        f"microseconds a call, median of {arguments.rounds} rounds; * called eagerly; keys and "
        f"values per second by the fastest; written to {arguments.out}"
    )


if __name__ == "__main__":
    main()
