"""Compiles kernels to machine code for a GPU that is not there: an interpreter forgives what a
compiler does not. mmspec's own functions launch them, at the shapes of `gpu_check`; each launch is
compiled as it would be, and none is made. Run by itself, without the interpreter.

    python scripts/compile_kernels.py 90             a line a kernel that was compiled
    python scripts/compile_kernels.py 90 --part 3/16     each sixteenth launch, from the third on
    python scripts/compile_kernels.py 90 --report build/kernels.jsonl    and its Facts, as JSON

What is run with the same Triton and TRITON_CACHE_DIR later finds them compiled: `gpu_check` has all
parts compiled at the same time.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout, not installed

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mmspec import noise, noise_kernels, nucleus_kernels
from mmspec.attention import LayerRule, Reach, RowNodes, TreeCall, triton_tree
from mmspec.attention.bitwise import ancestors_of
from mmspec.attention.conformance import CASES, Case, build
from mmspec.attention.kernels import bitwise
from mmspec.attention.rows import Attended
from mmspec.attention.tensors import TreeTensors
from mmspec.kv import kernels as kv_kernels
from mmspec.target.gpu_linears import candidates
from mmspec.target.kernels import gate, norm, rotary, skinny
from mmspec.target.kernels.skinny import PADDED_ROWS
from mmspec.target.parts import Shares
from mmspec.target.tilings import Shape

_H200 = (132, 233_472)  # multiprocessors, and bytes of shared memory of each
_LARGE_CASE = 3_000_000  # scores of a case whose tensors are not worth being drawn here
# Heads of keys and values, heads of queries for each, hidden, intermediate, outputs of the head.
_MODELS = {
    "llama-3-8b": (8, 4, 4096, 14_336, 128_256),
    "qwen2.5-7b": (4, 7, 3584, 18_944, 152_064),
    "llama-2-7b": (32, 1, 4096, 11_008, 32_000),
}
_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_CONTEXTS = (4096, 32_768, 131_072)
Launches = Iterable[Callable[[], object]]


class AbsentGpu:
    """As much of Triton's driver as a compilation asks."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_of(launches: Launches, *, capability: int) -> Iterator[tuple[str, Any]]:
    """(name, kernel) of all that the launches need, each once."""
    triton.runtime.driver.set_active(AbsentGpu(capability))
    launch, made = JITFunction.run, dict[str, tuple[str, Any]]()

    def compile_alone(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        found = launch(kernel, *args, **{**kwargs, "warmup": True})
        made.setdefault(found.hash, (kernel.fn.__name__, found))
        return found

    JITFunction.run = compile_alone
    try:
        for one in launches:
            before = len(made)
            one()
            yield from list(made.values())[before:]
    finally:
        JITFunction.run = launch


@dataclass(frozen=True)
class Facts:
    """What the machine code of one kernel says of its speed."""

    name: str
    constants: dict[str, object]  # what it was compiled for
    warps: int
    shared_bytes: int
    registers: int  # of a thread
    stack_bytes: int  # of a thread: memory that it takes for want of registers
    resident: int  # programs that a multiprocessor of an H200 has room for
    load_bits: int  # widest read of a thread, in loops and beside
    products: str  # tensor cores': HGMMA or HMMA, or none
    is_asynchronous: bool  # reads on their way while others are computed with
    waits_first: bool | None  # reads nothing before it may; None: it never begins early

    @staticmethod
    def of(name: str, kernel: Any, folder: Path) -> "Facts":
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        used = _said("cuobjdump", "--dump-resource-usage", cubin)
        numbers = dict(re.findall(r"(REG|STACK):(\d+)", used))
        code = _said("nvdisasm", "-c", cubin)
        registers, shared = int(numbers["REG"]), kernel.metadata.shared
        threads = 32 * kernel.metadata.num_warps
        widths = re.findall(r"\b(?:LDG|LDGSTS)\.E\.(?:[A-Z]+\.)*(64|128)\b", code)
        return Facts(
            name,
            {k: v for k, v in _constants(kernel).items() if isinstance(v, int | str)},
            kernel.metadata.num_warps,
            shared,
            registers,
            int(numbers["STACK"]),
            _resident(registers, shared, threads),
            max(map(int, widths), default=32),
            next((kind for kind in ("HGMMA", "HMMA") if kind in code), "none"),
            "LDGSTS" in code,
            _waits_first(code),
        )


def _said(tool: str, *options: object) -> str:
    """By a tool that comes with Triton."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    command = [str(path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _constants(kernel: Any) -> dict[str, object]:
    """By name."""
    names = kernel.src.fn.arg_names
    return {names[place[0]]: value for place, value in kernel.src.constants.items()}


def _resident(registers: int, shared: int, threads: int) -> int:
    """A multiprocessor has 65,536 registers, given out by eights, and takes 2048 threads and 32
    programs; each program's shared memory costs 1 KB more."""
    of_registers = 65_536 // (threads * -(-registers // 8) * 8)
    return min(of_registers, _H200[1] // (shared + 1024), 2048 // threads, 32)


def _waits_first(code: str) -> bool | None:
    wait = code.find("ACQBULK")
    reads = re.search(r"\b(LDG|LDGSTS|STG)\.", code)
    return None if wait < 0 else reads is None or wait < reads.start()


def all_launches(*, is_quick: bool) -> Launches:
    models = list(_MODELS)[:1] if is_quick else _MODELS
    nodes = (1, 17) if is_quick else _NODES
    for name in models:
        yield from _products(name, is_quick=is_quick)
        for count in nodes:
            if count == 1 or not is_quick:  # another number is compiled to much the same
                yield from _block(name, count)
            for context in _CONTEXTS[1:2] if is_quick else _CONTEXTS:
                yield from _attention(name, count, context)
    yield from _kv(is_quick=is_quick)
    yield from _noise(is_quick=is_quick)
    yield from _bitwise(is_quick=is_quick)
    if not is_quick:
        yield from _suite()


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Memory that is never touched takes none."""
    return torch.empty(shape, dtype=dtype)


def _row(context: int, nodes: int) -> RowNodes:
    return RowNodes(0, context, np.tri(nodes, dtype=np.bool_), np.arange(nodes))


def _attention(model: str, nodes: int, context: int) -> Launches:
    """Of one row whose lengths are known, as a graph has it, and behind another's prefix."""
    kv_heads, group, *_ = _MODELS[model]
    query = _empty(1, nodes, kv_heads * group, 128).transpose(1, 2)
    keys = _empty(64, kv_heads, 128)
    rule = LayerRule(Reach(), 128**-0.5)
    rung = triton_tree.TritonTree()
    plain = TreeCall([_row(context, nodes)], (), ())
    tensors = TreeTensors.of(plain.rows, "cpu", tail=max(nodes, 32))
    graph = TreeCall([], (), (), prepared=tensors, max_columns=2 * context)
    before = Attended(
        _empty(1, nodes, kv_heads, group, 128),
        _empty(1, kv_heads, group, nodes, dtype=torch.float32).permute(0, 3, 1, 2),
    )
    early = replace(graph, is_early=True)
    yield lambda: rung.attend(query, keys, keys, call=early, rule=rule)
    for call in (plain, graph):
        yield lambda call=call: rung.attend(query, keys, keys, call=call, rule=rule)
        yield lambda call=call: rung.attend(query, keys, keys, call=call, rule=rule, prefix=before)


def _suite() -> Launches:
    """The conformance suite's kinds of calls."""
    rung = triton_tree.TritonTree()

    def one(case: Case, dtype: torch.dtype) -> None:
        inputs = build(case, dtype=dtype, device=torch.device("cpu"))
        rung.attend(inputs.query, inputs.keys, inputs.values, call=inputs.call, rule=inputs.rule)

    for dtype, cases in (
        (torch.bfloat16, CASES), (torch.float16, CASES[::3]), (torch.float32, CASES[::3]),
    ):  # fmt: skip
        for case in cases:
            if case.size <= _LARGE_CASE:
                yield lambda case=case, dtype=dtype: one(case, dtype)


def _products(model: str, *, is_quick: bool) -> Launches:
    """The skinny products that a measurement at load tries."""
    kv_heads, group, hidden, intermediate, vocab = _MODELS[model]
    own, shared = kv_heads * group * 128, kv_heads * 128
    layers = [((own, shared, shared), hidden), ((hidden,), own), ((hidden,), intermediate)]
    layers += [((vocab,), hidden)]
    for padded in PADDED_ROWS:
        if is_quick and padded == 16:
            continue
        for sizes, width in layers[1:2] if is_quick else layers:
            has_bias = model.startswith("qwen") and len(sizes) == 3
            shape = Shape(sizes, width, torch.bfloat16, has_bias, False, sizes == (hidden,))
            rows, weights = _empty(padded, width), [_empty(n, width) for n in sizes]
            biases = [_empty(n) for n in sizes] if has_bias else None
            for tiling in candidates(shape, padded)[-1:] if is_quick else candidates(shape, padded):
                for is_early in (False, True):
                    yield lambda r=rows, w=weights, b=biases, t=tiling, e=is_early: skinny.multiply(
                        r, w, b, t, is_early=e
                    )
        rows, pair = _empty(padded, hidden), [_empty(intermediate, hidden) for _ in range(2)]
        shape = Shape((intermediate,) * 2, hidden, torch.bfloat16, False, True)
        for tiling in candidates(shape, padded)[:1] if is_quick else candidates(shape, padded):
            for is_early in (False, True):
                yield lambda r=rows, p=pair, t=tiling, e=is_early: skinny.multiply_gated(
                    r, *p, tiling=t, activation="silu", is_early=e
                )


def _block(model: str, nodes: int) -> Launches:
    """What is beside products and attention in a decoder block."""
    kv_heads, group, hidden, intermediate, _ = _MODELS[model]
    states, weight = _empty(1, nodes, hidden), _empty(hidden)
    both = _empty(1, nodes, 2 * intermediate).split(intermediate, dim=-1)
    apart = [_empty(1, nodes, intermediate) for _ in range(2)]
    tensors = TreeTensors.of([_row(40, nodes)], "cpu", tail=max(nodes, 32))
    keys, angles = _empty(64, kv_heads, 128), _empty(1, nodes, 128)
    sizes = [kv_heads * group * 128, kv_heads * 128, kv_heads * 128]
    stacked = _empty(1, nodes, sum(sizes)).split(sizes, dim=-1)
    own = [_empty(1, nodes, size) for size in sizes]
    head_norms = rotary.HeadNorms(_empty(128), _empty(128), 1e-6)
    for is_early in (False, True):
        normed = partial(norm.add_norm, weight=weight, epsilon=1e-5, is_early=is_early)
        yield partial(normed, states, None)
        yield partial(normed, states, states)
        yield partial(normed, states, Shares(_empty(4, *states.shape, dtype=torch.float32)))
        for parts in (both, apart):
            yield partial(gate.gate, *parts, activation="silu", is_early=is_early)
        for parts, norms in ((stacked, None), (own, None), (own, head_norms)):
            yield partial(
                rotary.turn, *parts, cos=angles, sin=angles, keys=keys, values=keys,
                tensors=tensors, norms=norms, is_early=is_early,
            )  # fmt: skip


def _kv(*, is_quick: bool) -> Launches:
    for kv_heads, head_dim in ((8, 128), (4, 128), (32, 128), (3, 80), (1, 64), (8, 256)):
        for nodes in (1, 9):
            states = _empty(4, nodes, kv_heads, head_dim).transpose(1, 2)
            buffers = [_empty(80, kv_heads, head_dim) for _ in "kv"]
            place = {name: torch.zeros(4, dtype=torch.int64) for name in ("first", "counts")}
            yield lambda b=buffers, s=states, p=place: kv_kernels.write(*b, s, s, **p)
        table = kv_kernels.BufferTable.of(buffers)
        for length in (2,) if is_quick else (1, 2, 4, 8, 16, 32):
            paths = [(0, tuple(range(1, length + 1)))]
            yield lambda t=table, p=paths: kv_kernels.commit(t, p)
        if is_quick:
            return


def _noise(*, is_quick: bool) -> Launches:
    for vocab in (128_256,) if is_quick else (128_256, 152_064, 32_000, 264):
        for nodes in (1,) if is_quick else (1, 2, 4, 8, 16, 64):
            places = [noise.Place(7, 0, 3)] * nodes
            scores = _empty(nodes, vocab, dtype=torch.float32)
            yield lambda s=scores, p=places: noise_kernels.choose(s, p)
            yield lambda s=scores: nucleus_kernels.nucleus(s, 0.9)
        yield lambda p=places, v=vocab: noise_kernels.gumbel_at(p, v, device="cpu")
        tokens = torch.zeros(9, dtype=torch.int64)
        yield lambda p=places, t=tokens: noise_kernels.gumbel_of(p[0], t)


def _bitwise(*, is_quick: bool) -> Launches:
    """At Llama-3-8B's shape, and at a small model's; with all that a layer may ask for."""
    shapes = [(8, 4, 128, 65)] if is_quick else [(8, 4, 128, 65), (8, 4, 128, 17), (2, 2, 64, 65)]
    for kv_heads, group, head_dim, nodes in shapes:
        tensors = TreeTensors.of([_row(40, nodes)], "cpu")
        query = _empty(1, nodes, kv_heads * group, head_dim).transpose(1, 2)
        keys, sinks = _empty(64, kv_heads, head_dim), _empty(kv_heads * group)
        for rule in (
            LayerRule(Reach(window=512), 0.1, 30.0, sinks), LayerRule(Reach(), 0.1),
        ):  # fmt: skip
            yield lambda q=query, k=keys, t=tensors, r=rule: bitwise.attend(
                q, k, k, t, ancestors_of(t), columns=8192, rule=r
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capability", type=int, help="of the GPU, 90 for a H100 or H200")
    parser.add_argument("--quick", action="store_true", help="each kernel, and few of its kinds")
    parser.add_argument("--report", type=Path, help="a file for what their machine code says")
    parser.add_argument("--part", default="1/1", help="this one of so many")
    args = parser.parse_args()
    triton_tree._device = lambda device: triton_tree._Device(*_H200)
    part, parts = map(int, args.part.split("/"))
    launches = islice(all_launches(is_quick=args.quick), part - 1, None, parts)
    with TemporaryDirectory() as folder, ExitStack() as files:
        report = args.report and files.enter_context(args.report.open("w"))
        for name, kernel in compiled_of(launches, capability=args.capability):
            if report:
                report.write(json.dumps(asdict(Facts.of(name, kernel, Path(folder)))) + "\n")
            print(name, kernel.metadata.shared, flush=True)


if __name__ == "__main__":
    main()
