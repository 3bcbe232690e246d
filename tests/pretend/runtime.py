"""What stands in for `torch.cuda`: streams and events that have nothing to wait for, graphs that
are recorded operation by operation, and Triton's launches."""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pytest
import torch
from tape import Operations
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from pretend.memory import CUDA, seen_on
from pretend.values import spoil

if TYPE_CHECKING:
    from pretend.device import Device

_GIB = 1 << 30
_PROPERTIES = SimpleNamespace(
    name="pretended",
    major=9,
    minor=0,
    total_memory=8 * _GIB,
    multi_processor_count=132,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    L2_cache_size=50 << 20,
)


class Capture:
    """The operations of one graph, and what they changed while they were recorded: on a GPU none of
    them has run then, so all of that is undone."""

    def __init__(self) -> None:
        self._operations = Operations()
        self._changed: list[tuple[Tensor, Tensor]] = []
        self._made: list[Tensor] = []

    def before(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[place] if place < len(args) else kwargs.get(argument.name)
            self.keep(given)

    def keep(self, given: Any) -> None:
        """The tensors of `given` are going to be changed."""
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor):
                self._changed.append((tensor, tensor.clone()))

    def after(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        fresh: Sequence[Tensor],
    ) -> None:
        """`fresh` is what the operation returned, but for what it was given."""
        self._made += self._operations.add(func, args, kwargs, fresh)

    def launched(self, again: Callable[[], None]) -> None:
        """A kernel, which is no operation of torch's."""
        self._operations.add_launch(again)

    def end(self) -> None:
        for tensor, value in reversed(self._changed):
            tensor.copy_(value)
        for tensor in self._made:
            spoil(tensor)
        self._changed.clear()

    def replay(self) -> None:
        self._operations.replay()


class Generator(torch.Generator):
    """Of whatever device: there is one algorithm."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()


def take_place_of_cuda(device: "Device", patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone."""

    pools: dict[Any, WeakSet[Any]] = {}  # those that graphs were recorded in, and which live

    class Graph:
        def __init__(self, keep_graph: bool = False) -> None:
            self._capture: Capture | None = None

        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            assert device.capture is None, "a graph is being recorded"
            assert streams.current is not streams.default, "the default stream is not recorded"
            if pool is not None:
                gc.collect()
                if pool in pools and not pools[pool]:
                    raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
                pools.setdefault(pool, WeakSet()).add(self)
            device.capture = self._capture = Capture()

        def capture_end(self) -> None:
            if device.capture is None:
                raise RuntimeError("no graph is being recorded")
            capture, device.capture = device.capture, None
            with _disable_current_modes():
                capture.end()

        def replay(self) -> None:
            assert self._capture is not None and device.capture is None
            device.launch("graph")
            with _disable_current_modes(), torch.no_grad():
                self._capture.replay()

        def reset(self) -> None:
            self._capture = None

        def pool(self) -> Any:
            return (0, 1)

    class Stream:
        device, device_index = CUDA, 0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.stream_id = self.cuda_stream = id(self)

        def wait_stream(self, stream: "Stream") -> None:
            pass

        def wait_event(self, event: "Event") -> None:
            pass

        def record_event(self, event: "Event | None" = None) -> "Event":
            event = event or Event()
            event.record(self)
            return event

        def synchronize(self) -> None:
            device.wait("Stream.synchronize")

    class Event:
        def __init__(self, enable_timing: bool = False, **kwargs: Any) -> None:
            self._at = 0.0

        def record(self, stream: Stream | None = None) -> None:
            self._at = time.perf_counter()

        def wait(self, stream: Stream | None = None) -> None:
            pass

        def query(self) -> bool:
            if device.capture is not None:
                raise RuntimeError("operation not permitted when stream is capturing: a query")
            return True

        def synchronize(self) -> None:
            device.wait("Event.synchronize")

        def elapsed_time(self, end: "Event") -> float:
            return max(end._at - self._at, 1e-6) * 1e3

    handles = itertools.count(1)
    streams = SimpleNamespace(default=Stream())
    streams.current = streams.default

    class OnStream:
        def __init__(self, stream: Stream | None) -> None:
            self._stream = stream

        def __enter__(self) -> None:
            self._before, streams.current = streams.current, self._stream or streams.current

        def __exit__(self, *raised: object) -> None:
            streams.current = self._before

    class OnDevice:
        def __init__(self, device: Any = None) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *raised: object) -> None:
            pass

    @contextmanager
    def graph(
        recorded: Graph,
        pool: Any = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        device.wait("torch.cuda.graph")
        with OnStream(stream or Stream()):
            recorded.capture_begin(pool, capture_error_mode)
            try:
                yield
            finally:
                recorded.capture_end()

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    names = {
        "_lazy_init": nothing,
        "init": nothing,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *a, **k: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": nothing,
        "device": OnDevice,
        "device_of": OnDevice,
        "Stream": Stream,
        "Event": Event,
        "stream": OnStream,
        "set_stream": lambda stream: setattr(streams, "current", stream),
        "current_stream": lambda *a: streams.current,
        "default_stream": lambda *a: streams.default,
        "synchronize": lambda *a: device.wait("torch.cuda.synchronize"),
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, next(handles)),
        "is_current_stream_capturing": lambda: device.capture is not None,
        "get_device_properties": lambda *a: _PROPERTIES,
        "get_device_capability": lambda *a: (_PROPERTIES.major, _PROPERTIES.minor),
        "get_device_name": lambda *a: _PROPERTIES.name,
        "mem_get_info": lambda *a: (_PROPERTIES.total_memory, _PROPERTIES.total_memory),
        "memory_allocated": lambda *a: 0,
        "max_memory_allocated": lambda *a: 0,
        "memory_reserved": lambda *a: 0,
        "max_memory_reserved": lambda *a: 0,
        "reset_peak_memory_stats": nothing,
        "empty_cache": nothing,
        "get_rng_state": lambda *a: torch.get_rng_state(),
        "set_rng_state": lambda state, *a: torch.set_rng_state(state),
        "manual_seed": nothing,
        "manual_seed_all": nothing,
    }
    for name, value in names.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch.version, "cuda", "13.0")

    def pinned(tensor: Tensor, *args: Any) -> Tensor:
        if device.capture is not None:  # it may have to be allocated
            raise RuntimeError("operation not permitted when stream is capturing: pinned memory")
        copy = tensor.clone()
        copy._is_pretended_pinned = True  # type: ignore[attr-defined]
        return copy

    patch.setattr(Tensor, "pin_memory", pinned)
    patch.setattr(torch, "Generator", Generator)
    shown = Tensor.__repr__
    patch.setattr(
        Tensor,
        "__repr__",
        lambda t, **k: shown(seen_on(t, "cpu"), **k) + (f" on {t.device}" if t.is_cuda else ""),
    )
    _take_launches(device, patch)


def _take_launches(device: "Device", patch: pytest.MonkeyPatch) -> None:
    """Kernels are given addresses, and whatever lies there is changed in place."""
    if find_spec("triton") is None:
        return
    from interpreted import LAUNCHER
    from triton.runtime.interpreter import GridExecutor

    launch = LAUNCHER.run

    def lend(argument: Any) -> Any:
        return seen_on(argument, "cpu") if isinstance(argument, Tensor) else argument

    def as_given(self: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return list(args), dict(kwargs)

    def launched(kernel: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if not any(t.is_cuda for t in tensors):
            launch(kernel, *args, **kwargs)
            return
        if not all(t.is_cuda for t in tensors):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        device.launch(f"triton {kernel.fn.__name__}")
        with _disable_current_modes():
            lent_args, lent_kwargs = tree_map(lend, (args, kwargs))

            def again() -> None:
                with pytest.MonkeyPatch.context() as within:
                    within.setattr(GridExecutor, "_init_args_hst", as_given)
                    within.setattr(GridExecutor, "_restore_args_dev", lambda *a: None)
                    launch(kernel, *lent_args, **lent_kwargs)

            if device.capture is not None:
                device.capture.keep((lent_args, lent_kwargs))
            again()
            if device.capture is not None:
                device.capture.launched(again)

    patch.setattr(LAUNCHER, "run", launched)
