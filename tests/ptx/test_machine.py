"""The machine that runs compiled kernels: what a GPU refuses, or leaves to chance, is an error."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ptx import arithmetic
from ptx.machine import Machine
from ptx.memory import GlobalMemory, IllegalAccess
from ptx.program import Program
from ptx.registers import rounded_to_bfloat16

THREADS = 128
_HEAD = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 128
{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<99>;
    ld.param.b64 %rd1, [kernel_param_0];
    ld.param.b64 %rd2, [kernel_param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mul.wide.u32 %rd3, %r1, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    shl.b32 %r3, %r1, 2;
    mov.b32 %r4, global_smem;
    add.s32 %r5, %r4, %r3;
"""


def run(body: str, source: Tensor, *, blocks: int = 1, is_late: bool = False) -> Tensor:
    """What the code leaves: thread t has the addresses of source[t] in rd4, of out[t] in rd5 and of
    a word of its own in shared memory in r5."""
    out = torch.full_like(source, -1)
    machine = Machine(Program.of(_HEAD + body + "\n    ret;\n$L__func_end0:\n}\n"), 4 * THREADS)
    arguments = [source.data_ptr(), out.data_ptr()]
    memory = GlobalMemory([source, out])
    with np.errstate(all="ignore"):
        machine.run(arguments, grid=(blocks, 1, 1), memory=memory, is_late=is_late)
    return out


@pytest.fixture
def numbers() -> Tensor:
    return torch.arange(THREADS, dtype=torch.int32)


_REVERSED = """
    ld.global.b32 %r6, [%rd4];
    st.shared.b32 [%r5], %r6;
    bar.sync 0;
    sub.s32 %r7, 508, %r3;
    add.s32 %r8, %r4, %r7;
    ld.shared.b32 %r9, [%r8];
    st.global.b32 [%rd5], %r9;
"""


def test_threads_share_memory_behind_a_barrier(numbers: Tensor) -> None:
    assert torch.equal(run(_REVERSED, numbers), numbers.flip(0))


def test_a_missing_barrier_is_found(numbers: Tensor) -> None:
    with pytest.raises(IllegalAccess, match="without a barrier"):
        run(_REVERSED.replace("bar.sync 0;", ""), numbers)


_COPIED = """
    cp.async.ca.shared.global [%r5 + 0], [%rd4 + 0], 4, 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    ld.shared.b32 %r9, [%r5];
    st.global.b32 [%rd5], %r9;
"""


@pytest.mark.parametrize("is_late", [False, True])
def test_a_copy_is_there_once_it_was_waited_for(numbers: Tensor, is_late: bool) -> None:
    assert torch.equal(run(_COPIED, numbers, is_late=is_late), numbers)


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("left", [1, 2])
def test_what_a_copy_brings_is_not_there_before(numbers: Tensor, left: int, is_late: bool) -> None:
    with pytest.raises(IllegalAccess, match="without a barrier or a wait"):
        run(_COPIED.replace("wait_group 0", f"wait_group {left}"), numbers, is_late=is_late)


_MULTIPLIED = """
    mov.b32 %r6, 0x3C003C00;
    st.shared.b32 [%r5], %r6;
    bar.sync 0;
    fence.proxy.async.shared::cta;
    shr.u32 %r7, %r4, 4;
    cvt.u64.u32 %rd6, %r7;
    or.b64 %rd6, %rd6, 0x80000;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r10,%r11,%r12,%r13}, {%r6,%r6,%r6,%r6},
        %rd6, 0, 1, 1, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    cvt.rzi.s32.f32 %r14, %r10;
    st.global.b32 [%rd5], %r14;
"""


@pytest.mark.parametrize("is_late", [False, True])
def test_a_product_reads_shared_memory_until_it_was_waited_for(
    numbers: Tensor, is_late: bool
) -> None:
    assert (run(_MULTIPLIED, numbers, is_late=is_late) == 16).all()
    commit, wait = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
    write = "bar.sync 0; st.shared.b32 [%r5], %r1;"
    early = _MULTIPLIED.replace(commit, commit + write)
    with pytest.raises(IllegalAccess, match="without a barrier or a wait"):
        run(early, numbers, is_late=is_late)
    run(_MULTIPLIED.replace(wait, wait + write), numbers, is_late=is_late)


def test_tensor_cores_see_nothing_without_a_fence(numbers: Tensor) -> None:
    with pytest.raises(IllegalAccess, match="fence"):
        run(_MULTIPLIED.replace("fence.proxy.async.shared::cta;", ""), numbers)


def test_a_register_that_nobody_wrote_holds_no_number(numbers: Tensor) -> None:
    assert run("st.global.b32 [%rd5], %r9;", numbers).view(torch.float32).isnan().all()


def test_a_part_of_a_warp_is_not_taken_for_all(numbers: Tensor) -> None:
    with pytest.raises(AssertionError, match="whole warp"):
        run("mov.b32 %r6, 0xFFFF; redux.sync.add.s32 %r7, %r1, %r6;", numbers)
    with pytest.raises(AssertionError, match="shfl"):
        run("shfl.sync.bfly.b32 %r7, %r1, 1, 31, 0xFFFF;", numbers)


def test_a_gpu_takes_no_more_than_it_has(numbers: Tensor) -> None:
    program = Program.of(_HEAD + "ret;\n$L__func_end0:\n}\n")
    with pytest.raises(AssertionError, match="shared memory"):
        Machine(program, 228 * 1024)
    with pytest.raises(AssertionError, match="grid"):
        Machine(program, 0).run([0, 0], grid=(1, 2**16, 1), memory=GlobalMemory([]), is_late=False)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("ld.global.b32 %r6, [%rd4 + 4];", "at 512 of a storage of 512"),
        ("st.global.b32 [%rd5 + -4], %r6;", "4 bytes at"),
        ("ld.global.b32 %r6, [%rd4 + 2];", "misaligned"),
        ("ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%rd4];", "misaligned"),
        ("ld.shared.b32 %r6, [%r5 + 4];", "outside of 512 bytes"),
        ("st.global.b32 [%rd2], %r2;", "several warps"),
        ("setp.lt.u32 %p1, %r1, 32; @%p1 st.global.b32 [%rd2], %r1;", "not the same"),
        ("st.shared.b32 [%r4], %r1;", "not the same"),
        (
            "ld.shared.b32 %r6, [%r4]; setp.eq.u32 %p1, %r1, 127; @%p1 st.shared.b32 [%r4], %r1;",
            "without a barrier",
        ),
        ("prefetch.global.L2 [%rd4 + 8];", "1 bytes at"),
        ("ld.global.b32 %r6, [%rd4]; griddepcontrol.wait;", "before the kernel ahead has ended"),
    ],
)
def test_an_access_that_a_gpu_may_refuse_or_order_otherwise_is_an_error(
    numbers: Tensor, body: str, told: str
) -> None:
    with pytest.raises(IllegalAccess, match=told):
        run(body, numbers)


_FOLLOWED = """
    ld.global.b64 %rd6, [%rd1];
    add.s64 %rd7, %rd6, %rd3;
    ld.global.b32 %r6, [%rd7];
    st.global.b32 [%rd5], %r6;
"""


def test_memory_that_no_argument_names_is_reached_by_a_table_alone(numbers: Tensor) -> None:
    table = torch.tensor([numbers.data_ptr()] * THREADS)
    assert torch.equal(run(_FOLLOWED, table).view(torch.int32)[:THREADS], numbers)
    with pytest.raises(IllegalAccess, match="of a storage"):
        run(_FOLLOWED, table.view(torch.float64))


def test_two_blocks_write_no_word_both(numbers: Tensor) -> None:
    body = "st.global.b32 [%rd5], %r1;"
    run(body, numbers)
    with pytest.raises(IllegalAccess, match="several blocks"):
        run(body, numbers, blocks=2)


def test_threads_that_part_meet_again(numbers: Tensor) -> None:
    """Odd ones go round as often as their number says, and wait for no one."""
    body = """
    and.b32 %r6, %r1, 1;
    mov.b32 %r7, 0;
    setp.eq.b32 %p1, %r6, 0;
    @%p1 bra $L_END;
$L_ROUND:
    add.s32 %r7, %r7, 2;
    setp.lt.s32 %p2, %r7, %r1;
    @%p2 bra $L_ROUND;
$L_END:
    shfl.sync.bfly.b32 %r8, %r7, 1, 31, -1;
    add.s32 %r9, %r7, %r8;
    st.global.b32 [%rd5], %r9;
    """
    found = run(body, numbers)
    assert found.tolist() == [(t | 1) + 1 for t in range(THREADS)]


def test_a_barrier_that_some_do_not_reach_is_an_error(numbers: Tensor) -> None:
    with pytest.raises(AssertionError, match="do not reach"):
        run("setp.lt.s32 %p1, %r1, 64;\n@%p1 bra $L_END;\nbar.sync 0;\n$L_END:", numbers)


def test_a_part_of_the_threads_waits_for_no_others(numbers: Tensor) -> None:
    body = "setp.lt.s32 %p1, %r1, 64;\n@%p1 griddepcontrol.wait;\nld.global.b32 %r6, [%rd4];"
    with pytest.raises(AssertionError, match="parted"):
        run(body, numbers)
    with pytest.raises(AssertionError, match="parted"):
        run(
            _COPIED.replace("cp.async.wait", "setp.lt.s32 %p1, %r1, 64;\n@%p1 cp.async.wait"),
            numbers,
        )


def _exact(value: float) -> Fraction:
    return Fraction(value)


FLOATS = st.floats(min_value=-1e100, max_value=1e100).filter(lambda x: x == 0 or abs(x) > 1e-100)


@given(FLOATS, FLOATS, FLOATS)
def test_a_product_and_a_sum_are_rounded_once(a: float, b: float, c: float) -> None:
    _, _, fused = arithmetic.of("fma.rn.f64", 3) or pytest.fail("unknown")
    (found,) = fused(*(np.array([x]) for x in (a, b, c)))
    assert found == float(_exact(a) * _exact(b) + _exact(c))


@given(*[st.floats(width=32, min_value=-(2.0**40), max_value=2.0**40)] * 3)
def test_so_are_those_of_float32(a: float, b: float, c: float) -> None:
    _, _, fused = arithmetic.of("fma.rn.f32", 3) or pytest.fail("unknown")
    (found,) = fused(*(np.array([x], np.float32) for x in (a, b, c)))
    exact = _exact(a) * _exact(b) + _exact(c)
    near = [np.nextafter(found, np.float32(way)) for way in (-np.inf, np.inf)]
    own = abs(_exact(float(found)) - exact)
    assert all(own <= abs(_exact(float(other)) - exact) for other in near)


@pytest.mark.parametrize(
    ("name", "operands", "expected"),
    [
        ("shl.b32", (1, 32), 0),
        ("shr.u32", (2**32 - 1, 40), 0),
        ("shr.s32", (-8, 40), -1),
        ("bfe.u32", (0b1011_0110, 2, 4), 0b1101),
        ("bfe.s32", (0b1011_0110, 2, 4), -3),
        ("mul.hi.u32", (2**32 - 1, 2**32 - 1), 2**32 - 2),
        ("div.s32", (-7, 2), -3),
        ("prmt.b32", (0x33221100, 0x77665544, 0x7140), 0x77114400),
        ("popc.b32", (0b1011,), 3),
    ],
)
def test_integers_are_those_of_the_manual(
    name: str, operands: tuple[int, ...], expected: int
) -> None:
    kinds, _, compute = arithmetic.of(name, len(operands)) or pytest.fail("unknown")
    dtypes = ["i4" if kind[0] == "s" else "u4" for kind in kinds]
    values = [np.array([x], dtype) for x, dtype in zip(operands, dtypes, strict=True)]
    assert compute(*values).tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "operands", "expected"),
    [
        ("cvt.rpi.ftz.f32.f32", (1e-40,), 0.0),
        ("rcp.approx.ftz.f64", (2.0**200,), 2.0**-200),
        ("rcp.approx.ftz.f64", (1 + 2.0**-30,), 1.0),
        ("fma.rn.bf16", (7, 37 / 256, -(2.0**-30)), 258 / 256),
        ("max.f32", (0.0, -0.0), 0.0),
        ("min.f32", (-0.0, 0.0), -0.0),
        ("min.f32", (np.nan, 1.0), 1.0),
    ],
)
def test_floats_are_those_of_the_manual(
    name: str, operands: tuple[float, ...], expected: float
) -> None:
    _, to, compute = arithmetic.of(name, len(operands)) or pytest.fail("unknown")
    dtype = np.float64 if to == "f64" else np.float32
    found = compute(*(np.full(64, x, dtype) for x in operands)).astype(dtype)
    if to == "bf16":
        found = (rounded_to_bfloat16(found).astype(np.uint32) << 16).view(np.float32)
    assert found.tobytes() == np.full(64, expected, dtype).tobytes()


def test_a_nan_that_a_gpu_makes_is_positive() -> None:
    _, _, subtract = arithmetic.of("sub.f32", 2) or pytest.fail("unknown")
    infinite = np.array([np.inf], np.float32)
    with np.errstate(all="ignore"):
        assert subtract(infinite, infinite).view(np.uint32).tolist() == [0x7FFFFFFF]


@pytest.mark.parametrize("name", ["add.sat.s32", "add.rz.f32", "cvt.rn.relu.bf16x2.f32"])
def test_what_is_unknown_is_not_left_out(name: str) -> None:
    assert arithmetic.of(name, 2) is None


def test_kernels_as_compiled_do_what_they_do_interpreted() -> None:
    """Some of their tests, in a process that compiles; `--compiled` runs the others, too."""
    pytest.importorskip("triton", reason="Triton is not installed")
    tests = Path(__file__).parents[1]
    chosen = [
        "attention/test_conformance.py::test_the_kernel_in_half_precision[dtype0]",
        "target/test_kernels.py::test_a_gated_product_rounds_as_four_operations_do[dtype1-5]",
        "kv/test_kernels.py::test_commit_takes_layers_of_different_dtypes",
        "test_noise_kernels.py::test_a_nan_is_not_lost",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--compiled", "late", *chosen]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(chosen)} passed" in done.stdout
