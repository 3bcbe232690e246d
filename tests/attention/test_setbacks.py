"""A backend that fails is put aside for the next, and the request goes on; a lost device is not."""

import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import interpreted
import pytest
import torch
from flash_standins import flash_attn_3_with_kvcache
from tape import TapeRecorder
from tensor_rung import TensorRung
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mmspec.attention import LayerRule, TreeCall, ladder, tail, tree, tree_attention
from mmspec.attention import setbacks as setbacks_module
from mmspec.attention.conformance import Case, Inputs, build
from mmspec.attention.flash_attn_3 import FlashAttention3
from mmspec.attention.rung import Rung
from mmspec.attention.setbacks import Setbacks
from mmspec.errors import BackendWarning
from mmspec.kernels import SetAside, raise_if_lost
from mmspec.target.graphs import Computed, Recording

assert interpreted
CPU = torch.device("cpu")
CASE = Case(committed=(20, 3), nodes=(5, 2), head_dim=16)


class FromElsewhere(Exception):
    """Packages have errors that derive from nothing else."""


class Failing(TensorRung):
    """Right, but for the calls of these numbers."""

    def __init__(self, name: str, error: Exception, failing: Collection[int] = ()) -> None:
        self.name, self.error, self.failing = name, error, failing
        self.calls = 0

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        self.calls += 1
        if self.calls in self.failing:
            raise self.error
        return super().attend(query, keys, values, call=call, rule=rule)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Setbacks()
    monkeypatch.setattr(tree, "SETBACKS", made)
    monkeypatch.setattr(tail, "SETBACKS", made)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these rungs, and matmul behind them, the whole ladder of a CPU."""

    def ask(*rungs: Rung) -> None:
        for rung in rungs:
            monkeypatch.setitem(ladder.RUNGS, rung.name, rung)
        monkeypatch.setattr(ladder, "CPU_ORDER", (*(rung.name for rung in rungs), "matmul"))

    return ask


def inputs_of(case: Case = CASE) -> Inputs:
    return build(case, dtype=torch.float64, device=CPU)


def attend(inputs: Inputs) -> Tensor:
    operands = (inputs.query, inputs.keys, inputs.values)
    return tree_attention(*operands, call=inputs.call, rule=inputs.rule)


def assert_right(inputs: Inputs) -> None:
    operands = (inputs.query, inputs.keys, inputs.values)
    expected = TensorRung().attend(*operands, call=inputs.call, rule=inputs.rule)
    got = attend(inputs)
    for index, row in enumerate(inputs.rows):
        error = (got[index] - expected[index])[: row.num_nodes].abs().max()
        assert float(error) < 1e-12


@contextmanager
def one_warning(*words: str) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    told = [str(w.message) for w in seen if w.category is BackendWarning]
    assert len(told) == 1, told
    assert all(word in told[0] for word in words), told


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.13: cannot open shared object file"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        TypeError("flash_attn() got an unexpected keyword argument 'num_splits'"),
        AssertionError("SplitKV not supported on SM 9.0"),
        OutOfResources(300_000, 232_448, "shared memory"),
        FromElsewhere("compilation failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_first_call_that_fails_is_computed_by_the_next(
    asked: Callable[..., None], error: Exception
) -> None:
    first, second = Failing("first", error, failing=[1]), Failing("second", error)
    asked(first, second)
    with one_warning("first", type(error).__name__, str(error)[:20], "second"):
        assert_right(inputs_of())
        assert_right(inputs_of())
    assert first.calls == 1, "it is asked no more"


def test_a_later_call_that_fails_is_too(asked: Callable[..., None]) -> None:
    first = Failing("first", RuntimeError("out of workspace"), failing=[5])
    asked(first)
    with one_warning("first", "out of workspace", "matmul"):
        for _ in range(8):
            assert_right(inputs_of())
    assert first.calls == 5


def test_calls_of_another_kind_still_ask_it_and_are_not_told_twice(
    asked: Callable[..., None],
) -> None:
    first = Failing("first", RuntimeError("tile too large"), failing=[1, 3])
    asked(first)
    others = [
        replace(CASE, head_dim=32),
        replace(CASE, nodes=(40, 2)),
        replace(CASE, softcap=3.0),
        replace(CASE, window=4),
        replace(CASE, committed=(7,), nodes=(5,)),
    ]
    with one_warning("first"):
        for case in (CASE, *others, CASE, *others):
            attend(inputs_of(case))
    assert first.calls == 1 + 2 * len(others) - 1, "one of the others fails too, and ends there"


def test_the_last_ones_failure_is_the_requests(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Failing("matmul", ValueError("the last"), failing=range(100))
    monkeypatch.setitem(ladder.RUNGS, "matmul", last)
    asked(Failing("first", RuntimeError("the first"), failing=[1]))
    with one_warning("the first"), pytest.raises(ValueError, match="the last"):
        attend(inputs_of())
    with pytest.raises(ValueError, match="the last"):
        attend(inputs_of())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
        RuntimeError("CUDA error: device-side assert triggered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=str,
)
def test_a_lost_device_and_used_up_memory_are_never_hidden(
    asked: Callable[..., None], error: Exception
) -> None:
    first = Failing("first", error, failing=[1])
    asked(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(type(error), match=re.escape(str(error))):
            attend(inputs_of())
        assert_right(inputs_of())
    assert first.calls == 2, "it has not failed itself"


def test_work_that_failed_unseen_shows_when_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def stream(synchronize: Callable[[], None]) -> Callable[..., object]:
        return lambda device: SimpleNamespace(synchronize=synchronize)

    def left_behind(size: int, *, device: torch.device) -> Tensor:
        told.append("invalid configuration argument")
        raise RuntimeError(told[-1])

    told: list[str] = []
    cuda, error = torch.device("cuda"), RuntimeError("cutlass: launch failed")
    monkeypatch.setattr(torch, "zeros", left_behind)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", stream(lost))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        raise_if_lost(error, cuda)
    # Nothing may be waited for while a graph is recorded.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    raise_if_lost(error, cuda)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", stream(lambda: None))
    raise_if_lost(error, cuda)
    assert len(told) == 2, "what a failed launch left is taken away, but not from a recording"


# While a graph is recorded


class Capturing(TapeRecorder):
    """Knows when it records, as a CUDA stream does."""

    def __init__(self) -> None:
        super().__init__()
        self.is_recording, self.ended = False, 0

    def record(self, forward: Callable[[], Computed]) -> Recording:
        runs = 0

        def counted() -> Computed:
            nonlocal runs
            runs += 1
            self.is_recording = runs > 1  # behind the warm-up
            return forward()

        try:
            return super().record(counted)
        finally:
            self.is_recording = False
            self.ended += 1


class FailingInGraphs(TensorRung):
    name = "first"

    def __init__(self, recorder: Capturing, error: Exception) -> None:
        self.recorder, self.error = recorder, error
        self.prepared = 0

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
    ) -> Tensor:
        self.prepared += call.prepared is not None
        if self.recorder.is_recording:
            raise self.error
        return super().attend(query, keys, values, call=call, rule=rule)


def test_a_failure_in_a_capture_ends_it_and_the_next_one_goes_without(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from target.graphs.test_score import CHAIN, FORK, Decoded

    recorder = Capturing()
    monkeypatch.setattr(setbacks_module, "is_recording", lambda device: recorder.is_recording)
    first = FailingInGraphs(recorder, RuntimeError("operation not permitted"))
    decoded = Decoded()
    decoded.target.use_graphs(recorder)
    asked(first, TensorRung())
    with one_warning("first", "operation not permitted", "tensors"):
        replayed = [decoded.step(FORK, CHAIN) for _ in range(5)]
    assert replayed == [False, False, True, True, True]
    assert recorder.ended == 2 and not decoded.info.given_up
    warmed_up = first.prepared
    assert warmed_up == 1 + decoded.model.config.num_hidden_layers, "not asked for the second graph"


def test_the_failure_of_the_only_one_for_graphs_gives_them_up(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from target.graphs.test_score import CHAIN, FORK, Decoded

    recorder = Capturing()
    monkeypatch.setattr(setbacks_module, "is_recording", lambda device: recorder.is_recording)
    decoded = Decoded()
    decoded.target.use_graphs(recorder)
    asked(FailingInGraphs(recorder, RuntimeError("operation not permitted")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [decoded.step(FORK, CHAIN) for _ in range(3)] == [False] * 3
    assert "operation not permitted" in decoded.info.given_up


# Behind a prefix


def flash_inputs(monkeypatch: pytest.MonkeyPatch, kernel: object) -> Inputs:
    """A call by FlashAttention's stand-in, whose tail goes to this kernel."""
    rung = FlashAttention3(flash_attn_3_with_kvcache, device="cpu")
    monkeypatch.setitem(ladder.RUNGS, "flash_attn_3", rung)
    monkeypatch.setattr(tail, "_suits_triton", lambda *operands: True)
    monkeypatch.setattr(tail, "_TRITON", kernel)
    inputs = build(CASE, dtype=torch.bfloat16, device=CPU)
    inputs.call.backend = "flash_attn_3"
    return inputs


def test_a_tail_kernel_that_fails_leaves_the_prefixs_kernel_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = flash_inputs(monkeypatch, SimpleNamespace(attend=tail.finish_plainly))
    expected = tree_attention(
        plain.query, plain.keys, plain.values, call=plain.call, rule=plain.rule
    )
    kernel = Failing("triton", RuntimeError("ptxas fatal"), failing=range(10))
    inputs = flash_inputs(
        monkeypatch, SimpleNamespace(attend=lambda *a, prefix, **k: kernel.attend(*a, **k))
    )
    with one_warning("triton behind a prefix", "ptxas fatal", "plain operations"):
        for _ in range(2):
            assert torch.equal(attend(inputs), expected)
    assert kernel.calls == 1


def test_a_tail_that_fails_in_a_capture_is_no_failure_of_the_prefixs_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = Failing("triton", RuntimeError("ptxas fatal"), failing=[1])
    inputs = flash_inputs(
        monkeypatch, SimpleNamespace(attend=lambda *a, prefix, **k: kernel.attend(*a, **k))
    )
    monkeypatch.setattr(setbacks_module, "is_recording", lambda device: True)
    with one_warning("triton behind a prefix"):
        with pytest.raises(SetAside, match="ptxas fatal"):
            attend(inputs)
        attend(inputs)  # by FlashAttention still
    assert kernel.calls == 1
