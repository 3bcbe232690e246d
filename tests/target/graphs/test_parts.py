"""A bucket's sizes, its tensors, what may not be recorded, and how CUDA is asked to record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretend
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import TapeRecorder
from torch import Tensor

import mmspec.kv.slots
from mmspec.attention import Reach, RowNodes, TreeCall
from mmspec.attention.tensors import TreeTensors
from mmspec.kv import KVCache, WritePlan
from mmspec.target.graphs import Bucket, Computed, CudaRecorder, ScoreCall, StaticInputs, score
from mmspec.target.graphs.guard import NoSync, Unrepeatable
from mmspec.uploads import upload

CPU = torch.device("cpu")


@given(
    rows=st.integers(1, 64), nodes=st.integers(1, 128), old=st.integers(0, 128),
    committed=st.integers(0, 200_000), planes=st.sampled_from([1, 3]),
)  # fmt: skip
def test_a_bucket_is_as_large_as_its_calls_and_not_much_larger(
    rows: int, nodes: int, old: int, committed: int, planes: int
) -> None:
    tail = nodes + old
    sizes = (rows, nodes, tail, committed + tail, planes)
    bucket = Bucket.of(rows=rows, nodes=nodes, tail=tail, columns=committed + tail, planes=planes)
    assert bucket is not None
    padded = (bucket.rows, bucket.nodes, bucket.tail, bucket.columns, bucket.planes)
    assert all(size <= large for size, large in zip(sizes, padded, strict=True))
    least = (1, 1, 32, 512, 1)
    assert all(large <= max(2 * n, m) for n, large, m in zip(sizes, padded, least, strict=True))
    assert bucket.nodes in (1, 2, 4, 8, 16, 32, 64, 128)


def test_a_call_too_large_has_no_bucket() -> None:
    sizes = {"rows": 1, "nodes": 1, "tail": 1, "columns": 10, "planes": 1}
    assert Bucket.of(**sizes) is not None
    for name, size in (("rows", 65), ("nodes", 129), ("tail", 257)):
        assert Bucket.of(**{**sizes, name: size}) is None


@st.composite
def calls(draw: st.DrawFn) -> ScoreCall:
    """What a call is told, of rows in their regions."""
    rows, cache = [], KVCache(1)
    starts, lengths, counts = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        old, nodes, committed = draw(st.integers(0, 3)), draw(st.integers(1, 5)), 20
        tail = old + nodes
        seen = np.tril(np.ones((tail, tail), dtype=np.bool_))[old:]
        start = cache.region(cache.open(40)).start
        rows.append(RowNodes(start, committed, seen, np.arange(tail)))
        starts.append(start)
        lengths.append(committed + old)
        counts.append(nodes)
    planes, width = draw(st.sampled_from([1, 3])), max(counts)
    positions = torch.arange(planes * len(rows) * width).view(planes, len(rows), width) + 20
    return ScoreCall(
        torch.randint(3, 90, (len(rows), width)),
        positions if planes > 1 else positions[0],
        TreeCall(rows, cache.flat_layers, [Reach()]),
        WritePlan(starts, lengths, counts),
        cache,
        cache.rows,
        (),
    )


@given(first=calls(), second=calls())
@settings(max_examples=25)
def test_static_inputs_hold_the_last_call_alone(first: ScoreCall, second: ScoreCall) -> None:
    planes = 1 if second.positions.ndim == 2 else 3
    bucket = Bucket(4, 8, 32, 512, planes)
    inputs = StaticInputs(bucket, CPU)
    addresses = [t.data_ptr() for t in tensors_of(inputs)]
    assert all(address % 16 == 0 for address in addresses)
    if first.positions.ndim == second.positions.ndim:
        inputs.fill(first)
    inputs.fill(second)
    batch, nodes = second.ids.shape
    assert [t.data_ptr() for t in tensors_of(inputs)] == addresses
    assert torch.equal(inputs.ids[:batch, :nodes], second.ids)
    assert torch.equal(inputs.positions[..., :batch, :nodes], second.positions)
    assert not inputs.ids[batch:].any() and not inputs.ids[:, nodes:].any()
    plan = second.plan
    assert inputs.slots.first[:batch].tolist() == [
        start + length for start, length in zip(plan.starts, plan.lengths, strict=True)
    ]
    assert inputs.slots.counts.tolist() == [*plan.counts, *[0] * (4 - batch)]
    expected = TreeTensors.of(second.tree.rows, "cpu", batch=4, nodes=8, tail=32)
    assert all(map(torch.equal, vars(inputs.tree).values(), vars(expected).values()))


@given(call=calls())
@settings(max_examples=5, deadline=None)
def test_tokens_that_the_device_found_take_the_same_place(call: ScoreCall) -> None:
    cuda = torch.device("cuda", 0)
    assert call.bucket is not None
    with pretend.device() as device:
        known, found = (StaticInputs(call.bucket, cuda) for _ in range(2))
        known.fill(call)
        ids = upload(call.ids, cuda)
        with device.counted() as waits:
            found.fill(replace(call, ids=ids))
        assert not waits
        assert found.ids.tolist() == known.ids.tolist()
        assert found.positions.tolist() == known.positions.tolist()


def tensors_of(inputs: StaticInputs) -> list[Tensor]:
    tree = vars(inputs.tree).values()
    return [inputs.ids, inputs.positions, inputs.slots.first, inputs.slots.counts, *tree]


@given(call=calls())
@settings(max_examples=25)
def test_a_varied_call_differs_in_every_value_and_touches_nothing_committed(
    call: ScoreCall,
) -> None:
    varied = call.varied
    assert varied is not None and varied.bucket is not None and call.bucket is not None
    assert (varied.ids != call.ids).all() and (varied.positions != call.positions).all()
    rows = zip(call.tree.rows, varied.tree.rows, strict=True)
    for own, other in rows:
        assert own.start != other.start and own.committed != other.committed
        assert own.num_nodes == 1 or own.num_nodes != other.num_nodes
    for index, row in enumerate(call.rows):
        region = call.cache.region(row)
        first, other = (
            plan.starts[index] + plan.lengths[index] for plan in (call.plan, varied.plan)
        )
        assert other == first + 1
        assert other + varied.plan.counts[index] <= region.start + region.capacity
    region.capacity = first + call.plan.counts[-1] - region.start
    assert call.varied is None


@pytest.mark.parametrize(
    "forward",
    [
        lambda t: t[0].item(),
        lambda t: bool((t > 0).all()),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.masked_select(t > 0),
        lambda t: torch.unique(t),
        lambda t: t.index_put_((t > 0,), torch.ones(4)),
        lambda t: torch.repeat_interleave(t, (t > 0).long()),
    ],
)  # fmt: skip
def test_what_waits_for_the_device_is_refused(forward: Callable[[Tensor], object]) -> None:
    with pytest.raises(Unrepeatable, match="looks at values on the device"), NoSync(CPU):
        forward(torch.ones(4))


def test_what_a_graph_repeats_is_allowed() -> None:
    states = torch.randn(4, 6)
    with NoSync(CPU):
        index = torch.tensor([2, 0])
        made = states[index].softmax(-1) @ states[:2].T
        states.index_copy_(0, index, made @ states[:2])
        states[:, 1] = 0.0
        states.masked_fill_(states > 1, 0.0)


def test_a_copy_from_another_device_is_refused() -> None:
    with pytest.raises(Unrepeatable, match="copies between CPU and device"):
        with NoSync(torch.device("meta")):
            torch.ones(4).to("meta")
    with pytest.raises(Unrepeatable, match="copies between CPU and device"):
        with NoSync(torch.device("meta")):
            torch.tensor(2.0).to("meta")  # a number alone, but a copy
    with NoSync(torch.device("meta")):
        assert (torch.ones(4, device="meta") * torch.tensor(2.0)).shape == (4,)


def test_a_tape_repeats_operations_and_not_python() -> None:
    """The stand-in is as strict as a graph: what Python has read stays what it was."""
    given, length = torch.arange(4.0), [2]

    def forward() -> Computed:
        doubled = given.view(2, 2).mul(2)
        doubled[0].add_(1)
        return Computed(doubled.flatten()[: length[0]] + torch.tensor(float(length[0])))

    computed, replay, _ = TapeRecorder().record(forward)
    assert computed.logits.tolist() == [3.0, 5.0]
    given.copy_(torch.tensor([10.0, 20.0, 0.0, 0.0]))
    length[0] = 4
    replay()
    assert computed.logits.tolist() == [23.0, 43.0]


def test_the_write_kernel_is_repeated_with_what_its_tensors_say_then() -> None:
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from mmspec.kv import kernels  # noqa: F401

        patch.setattr(mmspec.kv.slots, "has_kernels", lambda device: True)
        slots = mmspec.kv.WriteSlots(torch.tensor([3, 0]), torch.tensor([2, 0]))
        keys, values = torch.zeros(8, 2, 4), torch.zeros(8, 2, 4)
        states = torch.ones(2, 2, 2, 4)

        def forward() -> Computed:
            slots.write(keys, values, states, -states)
            return Computed(keys)

        replay = TapeRecorder().record(forward).replay
        keys.zero_()
        slots.first.copy_(torch.tensor([5, 1]))
        slots.counts.copy_(torch.tensor([1, 2]))
        states.mul_(7)
        replay()
    assert keys[:, 0, 0].tolist() == [0, 7, 7, 0, 0, 7, 0, 0]


class Cuda:
    """Stands in for torch.cuda: what is asked of it, in order, and on which stream."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = Stream(self, "caller")
        self.fails = False

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def say(self, what: str) -> None:
        self.log.append(f"{self.current.name}: {what}")


class Stream:
    def __init__(self, cuda: Cuda, name: str = "side") -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: "Stream") -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"{self.name} is done")


class Graph:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def capture_begin(self, *, pool: object = None, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.cuda.say(f"begins in {pool}" if pool else "begins")

    def capture_end(self) -> None:
        self.cuda.say("ends")
        if self.cuda.fails:
            raise RuntimeError("invalidated")

    def replay(self) -> None:
        self.cuda.say("replays")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    pools = (f"pool {number}" for number in count(1))
    streams = (f"side {number}" for number in count(1))
    stand_ins: dict[str, Any] = {
        "Stream": lambda: Stream(fake, next(streams)),
        "CUDAGraph": lambda: Graph(fake),
        "graph_pool_handle": lambda: next(pools),
        "current_stream": lambda device=None: fake.current,
        "stream": fake.stream,
        "device": lambda device: nullcontext(),
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


def test_cuda_warms_up_beside_the_recording_and_shares_one_pool(cuda: Cuda) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))

    def forward() -> Computed:
        cuda.say("forward")
        return Computed(torch.zeros(1))

    _, replay, _ = recorder.record(forward)
    assert cuda.log == [
        "side 1 waits for caller",
        "side 1: forward",
        "side 1: forward",
        "side 1 is done",
        "side 2: begins in pool 1",
        "side 2: forward",
        "side 2: ends",
        "caller waits for side 2",
    ]
    cuda.log.clear()
    replay()
    with cuda.stream(Stream(cuda, "other")):
        replay()
    assert cuda.log == ["caller: replays", "other waits for caller", "other: replays"]
    another = recorder.another(torch.device("cuda", 1))
    assert isinstance(another, CudaRecorder) and another is not recorder
    assert recorder.another(torch.device("cpu")) is None


@pytest.mark.parametrize("nodes", [1, 5, 8])
def test_what_is_copied_of_a_row_lies_as_it_lay(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else CUDA copies tensor by tensor: it takes several in one launch that have equal strides."""
    seen: list[bool] = []
    copy = torch._foreach_copy_

    def noted(to: list[Tensor], of: list[Tensor]) -> None:
        seen.extend(a.stride() == b.stride() for a, b in zip(to, of, strict=True))
        copy(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", noted)
    logits, states = torch.randn(1, 8, 30), torch.randn(1, 8, 6)
    copied = Computed(logits, {2: states}).copied(1, nodes)
    assert seen == [True, True]
    assert torch.equal(copied.logits, logits[:, :nodes]) and copied.logits.is_contiguous()
    assert torch.equal(copied.hidden_states[2], states[:, :nodes])


def test_inputs_are_written_once_a_replay_on_another_stream_has_read_them(cuda: Cuda) -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    recording = recorder.record(lambda: Computed(torch.zeros(1, 1, 1)))
    inputs = SimpleNamespace(fill=lambda call: cuda.say("writes its inputs"))
    graph = score._Graph(inputs, recording)
    call: Any = SimpleNamespace(size=(1, 1))
    cuda.log.clear()
    graph.compute(call)
    with cuda.stream(Stream(cuda, "other")):
        graph.compute(call)
    assert cuda.log == [
        "caller: writes its inputs",
        "caller: replays",
        "other waits for caller",
        "other: writes its inputs",
        "other: replays",
    ]


def test_a_pool_whose_graphs_are_gone_is_not_taken_again(cuda: Cuda) -> None:
    """torch's allocator asserts that a pool which is named anew has a graph that lives."""
    recorder = CudaRecorder(torch.device("cuda", 0))

    def recorded() -> Callable[[], None]:
        return recorder.record(lambda: Computed(torch.zeros(1))).replay

    def pools() -> list[str]:
        return [line.split("begins in ")[1] for line in cuda.log if "begins in" in line]

    first = recorded()
    second = recorded()
    assert pools() == ["pool 1", "pool 1"]
    del first
    third = recorded()
    assert pools()[2:] == ["pool 1"]
    del second, third
    kept = recorded()
    assert pools()[3:] == ["pool 2"]
    cuda.fails = True
    with pytest.raises(RuntimeError, match="invalidated"):
        recorded()
    cuda.fails = False
    recorded()
    assert pools()[4:] == ["pool 2", "pool 3"]
    kept()


def test_a_new_pool_is_recorded_on_a_stream_without_a_workspace_in_another(cuda: Cuda) -> None:
    """Else torch may free what its graphs write to, once it is told to clear all workspaces."""
    recorder = CudaRecorder(torch.device("cuda", 0))

    def recorded() -> Callable[[], None]:
        return recorder.record(lambda: Computed(torch.zeros(1))).replay

    kept = [recorded(), recorded()]
    kept.clear()
    kept.append(recorded())
    cuda.fails = True
    with pytest.raises(RuntimeError, match="invalidated"):
        recorded()
    cuda.fails = False
    kept.append(recorded())
    begun = [line for line in cuda.log if "begins in" in line]
    assert begun[0] == begun[1] == "side 2: begins in pool 1"
    assert begun[2] == begun[3] == "side 3: begins in pool 2"
    assert begun[4] == "side 4: begins in pool 3"
    assert {line for line in cuda.log if "waits for caller" in line} == {"side 1 waits for caller"}


def test_a_recording_that_fails_leaves_the_callers_stream_and_says_why(cuda: Cuda) -> None:
    import gc

    cuda.fails = True
    caller, runs = cuda.current, []

    def forward() -> Computed:
        runs.append(1)
        if len(runs) == 3:
            raise ValueError("the reason")
        return Computed(torch.zeros(1))

    with pytest.raises(ValueError, match="the reason"):
        CudaRecorder(torch.device("cuda", 0)).record(forward)
    assert cuda.current is caller and gc.isenabled()
    # torch's generator of random numbers waits for the end of a recording until one has ended.
    assert cuda.log[-3:] == ["side 2: ends", "side 2: begins", "side 2: ends"]


def test_a_forward_that_syncs_never_reaches_the_recording(cuda: Cuda) -> None:
    states = torch.ones(3)

    def forward() -> Computed:
        return Computed(states[: int(states.to("meta").shape[0])])

    with pytest.raises(Unrepeatable, match="copies between"):
        CudaRecorder(torch.device("cuda", 0)).record(forward)
    assert not any("begins" in line for line in cuda.log)
