"""Recorder: makes of a forward something that can be repeated without running Python."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch

from mmspec.target.graphs.call import Computed
from mmspec.target.graphs.guard import NoSync

_WARM_UPS = 2  # compile kernels, choose algorithms and allocate workspaces: nothing to be recorded


class Recording(NamedTuple):
    """A forward, recorded. `replay` computes `computed` anew, in place, from what the tensors that
    the forward read hold by then; `follow` comes before they are written."""

    computed: Computed
    replay: Callable[[], None]
    follow: Callable[[], None] = lambda: None


class Recorder(Protocol):
    """Records for one target, whose calls come one after the other."""

    def another(self, device: torch.device) -> "Recorder | None":
        """One like it for calls on a device, which may run at the same time as its own; None for a
        device that it knows nothing of."""

    def record(self, forward: Callable[[], Computed]) -> Recording:
        """Runs the forward a few times, and records it. Raises RuntimeError or whatever the forward
        does for what cannot be recorded."""


class CudaRecorder:
    """CUDA graphs in one memory pool.

    What a graph computes on the way lies where other graphs' does: a result must have been copied
    before the next replay of any graph, which a target's lock sees to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._warming: torch.cuda.Stream | None = None
        self._pool: tuple[Any, torch.cuda.Stream] | None = None  # and what is recorded into it on
        self._living: WeakSet[Callable[[], None]] = WeakSet()  # replays of graphs in the pool
        self._last: torch.cuda.Stream | None = None  # that a replay ran on

    def another(self, device: torch.device) -> "CudaRecorder | None":
        return CudaRecorder(device) if device.type == "cuda" else None

    def record(self, forward: Callable[[], Computed]) -> Recording:
        with torch.cuda.device(self._device):
            return self._record(forward)

    def _record(self, forward: Callable[[], Computed]) -> Recording:
        warming = self._warming = self._warming or torch.cuda.Stream()
        if self._pool is None or not self._living:  # torch refuses one whose graphs are all gone
            # Recorded on a stream that has multiplied nothing yet: the workspace that cuBLAS keeps
            # for it comes out of this pool, where it stays for the graphs when somebody has torch
            # clear all workspaces, as torch.compile does.
            self._pool = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        pool, recording = self._pool
        caller = torch.cuda.current_stream()
        warming.wait_stream(caller)
        with torch.cuda.stream(warming):
            for _ in range(_WARM_UPS):
                with NoSync(self._device):
                    forward()
        warming.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(recording), recorded(graph, pool, self._device):
                computed = forward()
        except BaseException:
            self._living.clear()  # how the pool is left differs by torch: the next is new
            raise
        caller.wait_stream(recording)

        def replay() -> None:
            self._follow()
            with torch.cuda.device(self._device):
                graph.replay()

        self._living.add(replay)
        return Recording(computed, replay, self._follow)

    def _follow(self) -> None:
        """What the current stream does comes behind replays on another one."""
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream


@contextmanager
def recorded(graph: torch.cuda.CUDAGraph, pool: Any, device: torch.device) -> Iterator[None]:
    """What is done within it on the current stream is recorded as the graph, in the pool."""
    with uncollected():
        # Of other threads' work this one shall not know.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            yield
            graph.capture_end()
        except BaseException:  # that is what matters, not what ending it raises
            try:
                graph.capture_end()
            except RuntimeError:
                _settle(pool, device)
            raise


def _settle(pool: Any, device: torch.device) -> None:
    """Where a recording could not be ended, torch's allocator and its random numbers still wait for
    that: the second for the end of any."""
    with suppress(Exception):  # a private function
        torch._C._cuda_endAllocateToPool(device.index or 0, pool)
    with suppress(Exception):
        other = torch.cuda.CUDAGraph()
        other.capture_begin(capture_error_mode="thread_local")
        try:
            torch.zeros(1, device=device)  # of an empty one torch warns
        finally:
            other.capture_end()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, which could free another graph while one is recorded."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
