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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from struct import unpack_from
from tempfile import NamedTemporaryFile
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

_HOPPER = 90
H200 = triton_tree._Device(132, 233_472)  # multiprocessors, and bytes of shared memory of each
_LARGE_CASE = 2**24  # scores of a case whose tensors are not worth being drawn here


@dataclass(frozen=True)
class _Model:
    kv_heads: int
    group: int  # query heads of each
    hidden: int
    intermediate: int
    vocab: int
    head_dim: int = 128
    biased: tuple[str, ...] = ()  # of its products
    dtype: torch.dtype = torch.bfloat16

    def empty(self, *shape: int) -> Tensor:
        return _empty(*shape, dtype=self.dtype)

    @property
    def sizes(self) -> list[int]:
        """What q, k and v make of a token."""
        shared = self.kv_heads * self.head_dim
        return [self.group * shared, shared, shared]


_LARGE = (
    _Model(8, 4, 4096, 14_336, 128_256),  # Llama 3 8B
    _Model(4, 7, 3584, 18_944, 152_064, biased=("qkv",)),  # Qwen2.5 7B
    _Model(32, 1, 4096, 11_008, 32_000),  # Llama 2 7B
)
_ENLARGED = replace(_LARGE[0], biased=("qkv", "o"))  # the bundled model at Llama 3 8B's shape
_BUNDLED = _Model(2, 2, 192, 384, 264, head_dim=64)
_SMALL = (_BUNDLED, replace(_BUNDLED, dtype=torch.float32))
# Of keys and values in models, and among `gpu_check`'s cells.
_HEADS = [
    *((model.kv_heads, model.head_dim, model.dtype) for model in (*_LARGE, *_SMALL)),
    *((n, size, dtype) for n in (1, 3, 8) for size in (64, 80, 128, 256)
      for dtype in (torch.bfloat16, torch.float32)),
]  # fmt: skip
_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_CONTEXTS = (64, 256, 512, 1024, 2048, 4096, 32_768)  # by splits, which are as many beyond
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
    """(name, kernel) of all that the launches need there, each once."""
    triton.runtime.driver.set_active(AbsentGpu(capability))
    launch, made = JITFunction.run, dict[str, tuple[str, Any]]()

    def compile_alone(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("launch_pdl") and capability < _HOPPER:  # no kernel begins early there
            return None
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
    narrow_loads: int  # reads of less than 64 bits of a thread
    products: str  # tensor cores': HGMMA or HMMA, or none
    are_serial: bool  # each HGMMA waits for the one before it, for the compiler saw no other way
    is_asynchronous: bool  # reads on their way while others are computed with
    is_fused: bool  # a float32 product and the sum it goes into are rounded once
    may_fuse: bool  # it is left open whether one of them is
    overwrites: bool  # writes registers that an HGMMA on its way has yet to read
    waits_first: bool | None  # reads nothing before it may; None: it never begins early

    @staticmethod
    def of(name: str, kernel: Any, code: str) -> "Facts":
        used = _said("cuobjdump", "--dump-resource-usage", of=kernel.asm["cubin"])
        numbers = dict(re.findall(r"(REG|STACK):(\d+)", used))
        registers, shared = int(numbers["REG"]), kernel.metadata.shared
        threads = 32 * kernel.metadata.num_warps
        widths = re.findall(r"\b(?:LDG|LDGSTS)\.E\.(?:[A-Z]+\.)*(64|128)\b", code)
        narrow = re.findall(r"\bLDG\.E(?!\S*\.(?:64|128)\b)", code)
        multiplied = re.findall(r"\bHGMMA\..*", code)  # the last of a group says so
        return Facts(
            name,
            {k: v for k, v in _constants(kernel).items() if isinstance(v, int | str)},
            kernel.metadata.num_warps,
            shared,
            registers,
            int(numbers["STACK"]),
            _resident(registers, shared, threads),
            max(map(int, widths), default=32),
            len(narrow),
            next((kind for kind in ("HGMMA", "HMMA") if kind in code), "none"),
            bool(multiplied) and all("gsb0" in product for product in multiplied),
            "LDGSTS" in code,
            "FFMA" in code,
            re.search(r"\b(mul|add|sub)\.(ftz\.)?f\d", kernel.asm["ptx"]) is not None,
            _overwrites(code),
            _waits_first(code),
        )


def _codes(kernels: Sequence[Any]) -> Iterator[str]:
    """The machine code of each, in one call: nvdisasm takes longer to begin than for a kernel."""
    codes = [_instructions(kernel.asm["cubin"]) for kernel in kernels]
    (arch,) = {re.findall(r"\.target sm_(\w+)", kernel.asm["ptx"])[0] for kernel in kernels}
    said = _said("nvdisasm", "--binary", f"SM{arch}", of=b"".join(codes))
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/.*", said)
    assert 16 * len(lines) == sum(map(len, codes)), "an instruction is 16 bytes, and a line"
    left = iter(lines)
    return ("\n".join(islice(left, len(code) // 16)) for code in codes)


def _instructions(cubin: bytes) -> bytes:
    """What is executed of an ELF file: sections with flag 4."""
    (first,), (size, count) = unpack_from("<Q", cubin, 40), unpack_from("<HH", cubin, 58)
    headers = (unpack_from("<8xQ8xQQ", cubin, first + size * i) for i in range(count))
    return b"".join(cubin[start : start + length] for flags, start, length in headers if flags & 4)


def _said(tool: str, *options: str, of: bytes) -> str:
    """By a tool that comes with Triton, of a file."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with NamedTemporaryFile() as file:
        file.write(of)
        file.flush()
        command = [str(path), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _constants(kernel: Any) -> dict[str, object]:
    """By name."""
    names = kernel.src.fn.arg_names
    return {names[place[0]]: value for place, value in kernel.src.constants.items()}


def _resident(registers: int, shared: int, threads: int) -> int:
    """A multiprocessor has 65,536 registers, given out by eights, and takes 2048 threads and 32
    programs; each program's shared memory costs 1 KB more."""
    of_registers = 65_536 // (threads * -(-registers // 8) * 8)
    return min(of_registers, H200.shared_bytes // (shared + 1024), 2048 // threads, 32)


def _waits_first(code: str) -> bool | None:
    wait = code.find("ACQBULK")
    reads = re.search(r"\b(LDG|LDGSTS|STG)\.", code)
    return None if wait < 0 else reads is None or wait < reads.start()


def _overwrites(code: str) -> bool:
    """What ptxas before CUDA 13.3 may do to an HGMMA whose first factor is in registers, as its
    release notes say. Triton before 3.9 brings such a one."""
    on_its_way = set[int]()
    for line in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([^;]*)", code):
        name, _, operands = line.partition(" ")
        if name.startswith("HGMMA"):
            if factor := re.match(r"R\d+, R(\d+)", operands.strip()):
                on_its_way |= set(range(int(factor[1]), int(factor[1]) + 4))
        elif name.startswith("WARPGROUP.DEPBAR"):
            on_its_way.clear()
        elif not name.startswith(("ST", "LDGSTS")):  # whose first operand is read
            size = 4 if ".128" in name else 2 if ".64" in name or "WIDE" in name else 1
            written = re.match(r"R(\d+)\b", operands.strip())
            first = int(written[1]) if written else -size
            if on_its_way & set(range(first, first + size)):
                return True
    return False


def all_launches(*, is_quick: bool) -> Launches:
    yield _trial
    for model in _LARGE[:1] if is_quick else (*_LARGE, _ENLARGED):
        yield from _products(model, is_quick=is_quick)
    if is_quick:
        yield from _block(_SMALL[1], earlies=(False,))
        yield from _block(_LARGE[0], earlies=(True,))
    else:
        for model in (*_SMALL, *_LARGE):
            yield from _block(model)
    for model in _LARGE[:1] if is_quick else (*_SMALL, *_LARGE):
        for nodes in (17,) if is_quick else _NODES:
            for context in _CONTEXTS[-1:] if is_quick else _CONTEXTS:
                yield from _attention(model, nodes, context)
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


def _trial() -> object:
    """Does Triton run at all? The first kernel that a load asks for."""
    states = torch.ones(1, 1, 16)
    return norm.add_norm(states, None, states.flatten(), epsilon=1e-6)


def _attention(model: _Model, nodes: int, context: int) -> Launches:
    """Of one row whose lengths are known, as a graph has it, and behind another's prefix."""
    kv_heads, group, head_dim, empty = model.kv_heads, model.group, model.head_dim, model.empty
    query = empty(1, nodes, kv_heads * group, head_dim).transpose(1, 2)
    keys = empty(context + nodes, kv_heads, head_dim)
    rule = LayerRule(Reach(), head_dim**-0.5)
    rung = triton_tree.TritonTree()
    plain = TreeCall([_row(context, nodes)], (), ())
    tensors = TreeTensors.of(plain.rows, "cpu", tail=max(nodes, 32))
    graph = TreeCall([], (), (), prepared=tensors, max_columns=2 * context)
    before = _prefix_of(query, kv_heads)
    for call in (plain, graph):
        for own in (call, replace(call, is_early=True)):
            yield lambda own=own: rung.attend(query, keys, keys, call=own, rule=rule)
        if model in _LARGE:  # the others' kernels take 16 bits, and are asked where ours fails
            yield lambda call=call: rung.attend(
                query, keys, keys, call=call, rule=rule, prefix=before
            )


def _prefix_of(query: Tensor, kv_heads: int) -> Attended:
    """As another kernel leaves it."""
    own = torch.empty_like(query.transpose(1, 2)).unflatten(2, (kv_heads, -1))
    lse = _empty(*own.shape[:-1], dtype=torch.float32).permute(0, 2, 3, 1).contiguous()
    return Attended(own, lse.permute(0, 3, 1, 2))


def _suite() -> Launches:
    """The conformance suite's kinds of calls."""
    rung = triton_tree.TritonTree()

    def one(case: Case, dtype: torch.dtype) -> None:
        own = build(case, dtype=dtype, device=torch.device("cpu"))
        operands = (own.query, own.keys, own.values)
        rung.attend(*operands, call=own.call, rule=own.rule)
        if own.rule.reach.is_full and case.value_dim is None and dtype != torch.float32:
            before = _prefix_of(own.query, case.kv_heads)
            rung.attend(*operands, call=own.call, rule=own.rule, prefix=before)

    for dtype, cases in (
        (torch.bfloat16, CASES), (torch.float16, CASES[::3]), (torch.float32, CASES[::3]),
    ):  # fmt: skip
        for case in cases:
            if case.size <= _LARGE_CASE:
                yield lambda case=case, dtype=dtype: one(case, dtype)


def _products(model: _Model, *, is_quick: bool) -> Launches:
    """The skinny products that a measurement at load tries."""
    hidden, intermediate = model.hidden, model.intermediate
    layers: dict[str, tuple[tuple[int, ...], int]] = {
        "o": ((hidden,), model.sizes[0]),
        "qkv": (tuple(model.sizes), hidden),
        "down": ((hidden,), intermediate),
        "head": ((model.vocab,), hidden),
    }
    earlies = (True,) if is_quick else (False, True)
    for padded in PADDED_ROWS:
        if is_quick and padded == 16:
            continue
        for name, (sizes, width) in islice(layers.items(), 1 if is_quick else None):
            has_bias = name in model.biased
            shape = Shape(sizes, width, torch.bfloat16, has_bias, False, sizes == (hidden,))
            rows, weights = _empty(padded, width), [_empty(n, width) for n in sizes]
            biases = [_empty(n) for n in sizes] if has_bias else None
            for tiling in candidates(shape, padded)[-1:] if is_quick else candidates(shape, padded):
                for is_early in earlies:
                    yield lambda r=rows, w=weights, b=biases, t=tiling, e=is_early: skinny.multiply(
                        r, w, b, t, is_early=e
                    )
        rows, pair = _empty(padded, hidden), [_empty(intermediate, hidden) for _ in range(2)]
        shape = Shape((intermediate,) * 2, hidden, torch.bfloat16, False, True)
        for tiling in candidates(shape, padded)[:1] if is_quick else candidates(shape, padded):
            for is_early in earlies:
                yield lambda r=rows, p=pair, t=tiling, e=is_early: skinny.multiply_gated(
                    r, *p, tiling=t, activation="silu", is_early=e
                )


def _block(model: _Model, *, earlies: Sequence[bool] = (False, True)) -> Launches:
    """What is beside products and attention in a decoder block, whatever the number of nodes."""
    empty, head_dim = model.empty, model.head_dim
    states, weight = empty(1, 1, model.hidden), empty(model.hidden)
    both = empty(1, 1, 2 * model.intermediate).split(model.intermediate, dim=-1)
    apart = [empty(1, 1, model.intermediate) for _ in range(2)]
    tensors = TreeTensors.of([_row(40, 1)], "cpu", tail=32)
    keys, angles = empty(64, model.kv_heads, head_dim), empty(1, 1, head_dim)
    stacked = empty(1, 1, sum(model.sizes)).split(model.sizes, dim=-1)
    own = [empty(1, 1, size) for size in model.sizes]
    head_norms = rotary.HeadNorms(empty(head_dim), empty(head_dim), 1e-6)
    for is_early in earlies:
        normed = partial(norm.add_norm, weight=weight, epsilon=1e-5, is_early=is_early)
        yield partial(normed, states, None)
        yield partial(normed, states, states)
        yield partial(normed, states, Shares(_empty(4, *states.shape, dtype=torch.float32)))
        for parts in (both, apart):
            yield partial(gate.gate, *parts, activation="silu", is_early=is_early)
        for parts, norms in ((stacked, None), (own, None), (own, head_norms)):
            yield partial(
                rotary.turn, *parts, cos=angles, sin=angles, keys=keys, values=keys.clone(),
                tensors=tensors, norms=norms, is_early=is_early,
            )  # fmt: skip


def _kv(*, is_quick: bool) -> Launches:
    for kv_heads, head_dim, dtype in _HEADS:
        states = _empty(4, 9, kv_heads, head_dim, dtype=dtype).transpose(1, 2)
        buffers = [_empty(80, kv_heads, head_dim, dtype=dtype) for _ in "kv"]
        place = {name: torch.zeros(4, dtype=torch.int64) for name in ("first", "counts")}
        yield lambda b=buffers, s=states, p=place: kv_kernels.write(*b, s, s, **p)
        table = kv_kernels.BufferTable.of(buffers)
        yield lambda t=table: kv_kernels.commit(t, [(0, (1, 2))])
        if is_quick:
            return


def _noise(*, is_quick: bool) -> Launches:
    for vocab in (128_256,) if is_quick else (128_256, 152_064, 32_000, 264):
        places, scores = [noise.Place(7, 0, 3)], _empty(1, vocab, dtype=torch.float32)
        for given in (scores, scores.bfloat16()):  # as a model's head leaves them
            yield lambda s=given, p=places: noise_kernels.choose(s, p)
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
        keys, sinks = _empty(40 + nodes, kv_heads, head_dim), _empty(kv_heads * group)
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
    triton_tree._device = lambda device: H200
    part, parts = map(int, args.part.split("/"))
    launches = islice(all_launches(is_quick=args.quick), part - 1, None, parts)
    made = []
    for name, kernel in compiled_of(launches, capability=args.capability):
        print(name, kernel.metadata.shared, flush=True)
        made.append((name, kernel))
    if args.report:
        codes = _codes([kernel for _, kernel in made])
        facts = [Facts.of(*own, code) for own, code in zip(made, codes, strict=True)]
        args.report.write_text("".join(json.dumps(asdict(own)) + "\n" for own in facts))


if __name__ == "__main__":
    main()
