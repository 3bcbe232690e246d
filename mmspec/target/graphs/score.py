"""ScoreGraphs: one target's graphs, and when they are used."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmspec.errors import GraphWarning
from mmspec.kernels import SetAside
from mmspec.target.graphs.call import Computed, GraphCall
from mmspec.target.graphs.inputs import StaticInputs
from mmspec.target.graphs.recorder import Recorder, Recording
from mmspec.target.graphs.watch import Watch

_MAX_SEEN = 256  # buckets that were met once
# Of the logits' standard deviation. The same operations in the same shapes: rounding alone.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.02

Forward = Callable[..., Computed]
"""Computes a call, the second argument, from its inputs, the first: a score call within its
`cache.writing`."""


class Inputs(Protocol):
    """All that a recorded call depends on, in tensors that stay where they are."""

    def fill(self, call: Any) -> None:
        """Takes over the values of a call like the recorded one."""


@dataclass(frozen=True)
class GraphInfo:
    """What became of score calls and draft steps."""

    recorded: int  # graphs, those included that are gone
    replayed: int  # calls
    eager: int  # calls without a graph
    num_graphs: int  # that are kept
    given_up: str  # why the model is not recorded; "" where it is

    def __add__(self, other: "GraphInfo") -> "GraphInfo":
        reasons = dict.fromkeys(filter(None, (self.given_up, other.given_up)))
        return GraphInfo(
            self.recorded + other.recorded,
            self.replayed + other.replayed,
            self.eager + other.eager,
            self.num_graphs + other.num_graphs,
            "; ".join(reasons),
        )


class _Graph(NamedTuple):
    inputs: Inputs
    recording: Recording

    def compute(self, call: GraphCall) -> Computed:
        self.recording.follow()
        self.inputs.fill(call)
        self.recording.replay()
        return self.recording.computed.copied(*call.size)


class ScoreGraphs:
    """Records a call's bucket when it comes for the second time, and replays it from then on.

    A graph holds for one cache's buffers, where they lie. Before it is used, it has to agree with
    the forward itself on a call that differs in every value: what Python has read of the recorded
    one stays what it was. A model that cannot be recorded is given up with one GraphWarning.

    All calls are made under the target's lock, and what they return is the caller's.
    """

    def __init__(
        self,
        recorder: Recorder,
        device: torch.device,
        *,
        inputs: Callable[..., Inputs] = StaticInputs.of,
        max_graphs: int = 64,
    ) -> None:
        """`inputs` makes those of a call on a device. The `max_graphs` used last are kept."""
        self.recorder = recorder
        self._inputs = inputs
        self._device = device
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._watch: Watch | None = None  # of the model as it was when they were recorded
        self._given_up = ""
        self._counts = {"recorded": 0, "replayed": 0, "eager": 0}

    @property
    def info(self) -> GraphInfo:
        return GraphInfo(**self._counts, num_graphs=len(self._graphs), given_up=self._given_up)

    def clear(self) -> None:
        """Drops all graphs."""
        self._graphs.clear()
        self._seen.clear()
        self._watch = None

    def score(
        self, call: GraphCall, forward: Forward, *, mode: Hashable, model: nn.Module
    ) -> Computed | None:
        """What the forward computes of the call, or None where it must be computed without a
        graph, which overwrites what was written. `mode` is what else tells graphs apart; once the
        `model` has other weights, modules or hooks all graphs end."""
        computed = self._by_graph(call, forward, mode, model)
        self._counts["eager" if computed is None else "replayed"] += 1
        return computed

    def _by_graph(
        self, call: GraphCall, forward: Forward, mode: Hashable, model: nn.Module
    ) -> Computed | None:
        kind = call.kind
        if self._given_up or kind is None or torch.is_autocast_enabled(self._device.type):
            return None
        key = (kind, mode, _arithmetic())
        graph = self._graphs.get(key)
        if graph is None:
            if not self._is_worth_it(key):
                return None
            graph = self._record(call, forward, model)
            if graph is None or call.kind != kind:  # its buffers have moved
                return None
            self._keep(key, graph)
        self._graphs.move_to_end(key)
        computed = graph.compute(call)
        # While the device is busy: looking through a model's modules takes a while.
        if self._watch is None or not self._watch.holds:
            self.clear()
            return None
        return computed

    def _is_worth_it(self, key: Hashable) -> bool:
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return False

    def _record(self, call: GraphCall, forward: Forward, model: nn.Module) -> _Graph | None:
        if self._watch is None or not self._watch.holds:
            self._graphs.clear()
            self._watch = Watch(model)
        varied = call.varied
        if not self._watch.may_record or varied is None:
            return None
        inputs = self._inputs(call, self._device)
        inputs.fill(call)
        try:
            graph = _Graph(inputs, self.recorder.record(lambda: forward(inputs, call)))
        except SetAside:  # the next recording goes without what failed
            return None
        except (
            Exception
        ) as error:  # whatever a model's forward may raise: without graphs it goes on
            self._give_up(f"{type(error).__name__}: {error}")
            return None
        self._counts["recorded"] += 1
        return graph if self._agrees(graph, varied, forward) else None

    def _keep(self, key: Hashable, graph: _Graph) -> None:
        self._graphs[key] = graph
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)

    def _agrees(self, graph: _Graph, call: GraphCall, forward: Forward) -> bool:
        computed, left = graph.compute(call), call.left
        expected = forward(graph.inputs, call).copied(*call.size)
        counts = call.counts
        error = _distance(computed.logits, expected.logits, counts)
        for there, here in zip(left, call.left, strict=True):
            error = max(error, _distance(there[None], here[None], [here.shape[0]]))
        for tap, states in expected.hidden_states.items():
            error = max(error, _distance(computed.hidden_states[tap], states, counts))
        for got, own in zip(computed.queries, expected.queries, strict=True):
            states = own.states.transpose(1, 2)
            error = max(error, _distance(got.states.transpose(1, 2), states, counts))
        tolerance = _TOLERANCE.get(computed.logits.dtype, _LOW_PRECISION_TOLERANCE)
        if error <= (tolerance if not call.is_bitwise else 0.0):  # bitwise mode: not a bit
            return True
        self._give_up(
            f"a replay was off by {error:.2g} standard deviations: the forward reads a length or "
            "another value of one call that is not in its inputs"
        )
        return False

    def _give_up(self, reason: str) -> None:
        self.clear()
        self._given_up = reason
        warnings.warn(
            f"score calls cannot be recorded as CUDA graphs ({reason}); they go on without, and "
            "slower. decode.cuda_graphs=never says so from the start",
            GraphWarning,
            stacklevel=2,
        )


def _arithmetic() -> Hashable:
    """How torch multiplies matrices on a GPU, which a user may change between two calls: a graph
    goes on as it was recorded."""
    matmul = torch.backends.cuda.matmul
    return (
        matmul.fp32_precision,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
    )


def _distance(got: Tensor, expected: Tensor, counts: Sequence[int]) -> float:
    """The largest difference at a real node, in standard deviations of what is expected."""
    largest = 0.0
    for row, count in enumerate(counts):
        own = expected[row, :count].double()
        spread = own.std().clamp_min(torch.finfo(expected.dtype).tiny)
        distance = float((got[row, :count].double() - own).abs().max() / spread)
        largest = max(largest, distance if distance == distance else float("inf"))
    return largest
