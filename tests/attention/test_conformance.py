"""Every backend against the conformance suite: it computes a case rightly, or says that it cannot.

Those that need a GPU run by Triton's interpreter and by stand-ins; on a GPU they run themselves.
"""

from dataclasses import replace
from typing import Any

import interpreted
import pytest
import torch
from flash_standins import (
    flash_attn_2_with_kvcache,
    flash_attn_3_with_kvcache,
    flash_attn_4_varlen_func,
    torch_flash,
)
from torch import Tensor

from mmspec.attention import LayerRule, TreeCall, conformance
from mmspec.attention.conformance import CASES, FAR, Case, build, check
from mmspec.attention.flash_attn_2 import FlashAttention2
from mmspec.attention.flash_attn_3 import FlashAttention3
from mmspec.attention.flash_attn_4 import FlashAttention4
from mmspec.attention.kernels.tiles import Tile
from mmspec.attention.ladder import RUNGS
from mmspec.attention.rows import Attended
from mmspec.attention.rung import Rung
from mmspec.attention.tail import finish_plainly
from mmspec.attention.torch_flash import TorchFlash
from mmspec.attention.triton_tree import TritonTree

assert interpreted
CPU = torch.device("cpu")
KERNEL_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STANDINS: dict[str, Rung] = {
    "flash_attn_4": FlashAttention4(flash_attn_4_varlen_func, device="cpu"),
    "flash_attn_3": FlashAttention3(flash_attn_3_with_kvcache, device="cpu"),
    "flash_attn_2": FlashAttention2(flash_attn_2_with_kvcache, device="cpu"),
    "torch_flash": TorchFlash(torch_flash, device="cpu"),
}
OWN = ("flash_cpu", "sdpa", "matmul")
SMALL = [case for case in CASES if case.size <= 150_000]
LARGE = [case for case in CASES if case.size > 150_000]
# What the interpreter computes within seconds: every branch of the kernels, each once.
QUICK = Case(committed=(150,), kv_heads=1, head_dim=64, group=2)
INTERPRETED = [
    QUICK,
    replace(QUICK, committed=(128,), nodes=(1,), group=1),
    replace(QUICK, nodes=(40,), head_dim=16),  # several words of bits, several tiles
    replace(QUICK, nodes=(9,), group=7, head_dim=16, older=30),
    replace(QUICK, head_dim=80, value_dim=48),
    replace(QUICK, committed=(0, 140, 3), nodes=(2, 1, 9), is_prepared=True),
    replace(QUICK, committed=(300, 4), nodes=(7, 3), window=60),
    replace(QUICK, committed=(40,), window=1),
    replace(QUICK, committed=(150,), chunk=64, is_prepared=True),
    replace(QUICK, softcap=3.0, has_sinks=True),
    replace(QUICK, committed=(120, 90), nodes=(5, 9), kv_heads=2, is_gathered=True),
]


def expected_verdict(rung: str, case: Case, dtype: torch.dtype) -> str:
    """What a backend computes, told once more and apart from it."""
    half = dtype in (torch.bfloat16, torch.float16)
    is_flash = rung.startswith(("flash_attn", "torch_flash"))
    has_reach = bool(case.window or case.chunk)
    same_size = case.value_dim in (None, case.head_dim)
    declines = (
        (is_flash and (not half or has_reach or not same_size))
        or (rung in ("torch_flash", "flash_cpu", "sdpa") and bool(case.softcap))
        or (rung == "sdpa" and case.has_sinks)
        or (rung == "flash_cpu" and not same_size)
        or (rung in ("torch_flash", *OWN) and case.is_prepared)
    )
    return "declined" if declines else "passed"


def assert_conforms(rung: Rung, case: Case, dtype: torch.dtype, device: torch.device) -> None:
    outcome = check(rung, case, dtype=dtype, device=device)
    assert outcome.verdict == expected_verdict(rung.name, case, dtype), outcome


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rung", OWN)
def test_the_rungs_of_any_machine(rung: str, dtype: torch.dtype) -> None:
    for case in SMALL:
        assert_conforms(RUNGS[rung], case, dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rung", STANDINS)
def test_folding_and_merging_round_the_packages(rung: str, dtype: torch.dtype) -> None:
    for case in SMALL:
        assert_conforms(STANDINS[rung], case, dtype, CPU)


@pytest.mark.parametrize("case", INTERPRETED, ids=lambda case: case.label)
@pytest.mark.parametrize("splits", [1, 3])
def test_the_kernel(case: Case, splits: int) -> None:
    tile = Tile(block_m=16, block_n=32, num_warps=4, num_stages=1)
    rung = TritonTree(tile, splits)
    assert_conforms(rung, case, torch.float32, KERNEL_DEVICE)


@pytest.mark.parametrize("block_n", [16, 32, 64, 128])
def test_blocks_that_begin_within_a_word_of_the_mask_find_each_bit(block_n: int) -> None:
    """Tails of four words, behind prefixes that end anywhere in a block."""
    case = Case((21, 64, 150), (70, 33, 9), older=40, kv_heads=1, group=1, head_dim=16)
    rung = TritonTree(Tile(block_m=128, block_n=block_n, num_warps=4, num_stages=1), splits=2)
    assert_conforms(rung, case, torch.float32, KERNEL_DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_in_half_precision(dtype: torch.dtype) -> None:
    case = replace(QUICK, committed=(300, 20), nodes=(9, 3))
    assert_conforms(TritonTree(), case, dtype, KERNEL_DEVICE)


@pytest.mark.parametrize("splits", [1, 2])
def test_offsets_are_wider_than_32_bits(splits: int) -> None:
    """Memory that is not touched costs none. Cut to 32 bits, an offset would point to its begin."""
    case = replace(FAR, kv_heads=1, head_dim=64, group=2, before=2**32 // 64)
    if KERNEL_DEVICE.type == "cuda":
        pytest.skip("scripts/gpu_check.py has it for a GPU")
    try:
        inputs = build(case, dtype=torch.bfloat16, device=CPU)
    except RuntimeError as error:
        pytest.skip(f"no room: {error}")
    rung = TritonTree(Tile(block_m=16, block_n=64, num_warps=4, num_stages=1), splits)
    outcome = check(rung, case, dtype=torch.bfloat16, device=CPU, inputs=inputs)
    assert outcome.verdict == "passed", outcome


@pytest.mark.parametrize("name", [*OWN, "torch_flash", "flash_attn_2", "triton"])
def test_what_another_request_has_overflowed_to_is_not_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But by FlashAttention 3 and 4, whose stand-ins refuse it."""
    monkeypatch.setattr(conformance, "_BETWEEN", torch.nan)
    rung = STANDINS.get(name) or RUNGS[name]
    device = KERNEL_DEVICE if name == "triton" else CPU
    case = replace(QUICK, committed=(20, 0, 7), nodes=(9, 2, 1))
    outcome = check(rung, case, dtype=torch.bfloat16, device=device)
    assert outcome.verdict == "passed", outcome


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_kernel_in_every_case(case: Case, dtype: torch.dtype) -> None:
    assert_conforms(TritonTree(), case, dtype, KERNEL_DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("rung", [*OWN, *STANDINS])
def test_long_texts_and_large_trees(rung: str) -> None:
    own = STANDINS[rung] if rung in STANDINS else RUNGS[rung]
    for case in LARGE:
        assert_conforms(own, case, torch.bfloat16, CPU)


@pytest.mark.gpu(real=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rung", RUNGS)
def test_on_the_gpu(rung: str, dtype: torch.dtype) -> None:
    if RUNGS[rung].missing():
        pytest.skip(f"needs {RUNGS[rung].missing()}")
    outcomes = [check(RUNGS[rung], case, dtype=dtype, device=KERNEL_DEVICE) for case in CASES]
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    assert not failed, failed


# The suite itself


class Lost(Tensor):
    """Work on a device that failed: it is told by the first thing that waits for it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__float__ or func is Tensor.__bool__:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().__torch_function__(func, types, args, kwargs or {})


class Faulty:
    """A backend with one fault."""

    name = "matmul"
    is_graph_safe = True

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def missing(self) -> str:
        return ""

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        return True

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        rows = list(call.rows)
        if self.fault == "misses the first token":
            rows = [replace(row, start=row.start + 1, committed=row.committed - 1) for row in rows]
        if self.fault == "sees a sibling":
            rows = [replace(row, visible=row.visible | True) for row in rows]
        if self.fault == "reads beyond the row":
            rows = [replace(row, start=row.start + 1) for row in rows]
        right = RUNGS["matmul"]
        out = right.attend(query, keys, values, call=TreeCall(rows, (), ()), rule=rule)
        if self.fault == "leaves padding":
            return torch.where(out == 0, 1.0, out)
        if self.fault == "raises":
            raise RuntimeError("out of resources")
        if self.fault == "fails unseen":
            return out.as_subclass(Lost)
        return out * (1.02 if self.fault == "is off by 2%" else 1.0)


@pytest.mark.parametrize(
    "fault",
    [
        "misses the first token",
        "sees a sibling",
        "reads beyond the row",
        "leaves padding",
        "raises",
        "fails unseen",
        "is off by 2%",
    ],
)
def test_the_suite_finds_a_fault(fault: str) -> None:
    case = Case(committed=(33, 9), nodes=(5, 3))
    good = check(Faulty("none"), case, dtype=torch.bfloat16, device=CPU)
    bad = check(Faulty(fault), case, dtype=torch.bfloat16, device=CPU)
    assert (good.verdict, bad.verdict) == ("passed", "failed"), (good, bad)


def test_the_suite_has_the_shapes_that_it_promises() -> None:
    assert {0, 1, 255, 256, 257, 4096, 65_536} <= {c for case in CASES for c in case.committed}
    assert {1, 4, 7, 8} <= {case.group for case in CASES}
    assert {1, 128} <= {n for case in CASES for n in case.nodes}
    assert {64, 80, 96, 128, 256} <= {case.head_dim for case in CASES}
    assert any(len(set(case.committed)) > 2 for case in CASES), "ragged rows"


# Prefix and tail


@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_kernel_goes_on_from_a_prefix_as_plain_operations_do(
    softcap: float | None, has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "_BETWEEN", torch.nan)  # another request has overflowed
    case = replace(
        QUICK, committed=(20, 0, 7), nodes=(9, 2, 1), softcap=softcap, has_sinks=has_sinks
    )
    inputs = build(case, dtype=torch.float32, device=KERNEL_DEVICE)
    batch, heads, nodes, size = inputs.query.shape
    out, lse = torch.randn(batch, nodes, 1, heads, size), torch.randn(batch, nodes, 1, heads)
    prefix = Attended(out.to(KERNEL_DEVICE), lse.to(KERNEL_DEVICE))
    prefix.out[1], prefix.lse[1] = torch.nan, torch.inf  # what some kernels say of nothing
    operands = (inputs.query, inputs.keys, inputs.values)
    plain = finish_plainly(*operands, prefix, call=inputs.call, rule=inputs.rule)
    kernel = TritonTree().attend(*operands, call=inputs.call, rule=inputs.rule, prefix=prefix)
    assert torch.isfinite(plain).all()
    assert float((plain - kernel).abs().max()) < 1e-5
