"""MedusaGraphs: the heads' one forward, recorded and repeated."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmspec.drafters.heads import TargetEnds, as_one, recorded_as
from mmspec.drafters.medusa.module import MedusaHead
from mmspec.target import Target
from mmspec.target.graphs import Computed

_MAX_ROWS = 64


@dataclass(frozen=True)
class StateCall:
    """What the first `num_heads` heads say of some rows' states. To a graph a head is a node."""

    states: Tensor  # (rows, hidden)
    num_heads: int

    @property
    def rows(self) -> int:
        """Of the call's graph: a few sizes do for all."""
        return 1 << (self.states.shape[0] - 1).bit_length()

    @property
    def kind(self) -> Hashable | None:
        return (self.rows, self.num_heads) if self.rows <= _MAX_ROWS else None

    @property
    def size(self) -> tuple[int, int]:
        return self.states.shape[0], self.num_heads

    @property
    def counts(self) -> Sequence[int]:
        return [self.num_heads] * self.states.shape[0]

    @property
    def is_bitwise(self) -> bool:
        return False

    @property
    def left(self) -> Sequence[Tensor]:
        return ()

    @property
    def varied(self) -> "StateCall":
        return replace(self, states=self.states.roll(1, dims=-1))


class StateInputs:
    """The states of a graph's rows, where they stay; those of padding are 0."""

    def __init__(self, call: StateCall, device: torch.device) -> None:
        shape = call.rows, call.states.shape[1]
        self.states = torch.zeros(shape, dtype=call.states.dtype, device=device)

    def fill(self, call: StateCall) -> None:
        count = call.states.shape[0]
        self.states[:count].copy_(call.states)
        self.states[count:].zero_()


class MedusaGraphs:
    """The recorded graphs of one set of heads, where the target's score calls are recorded; not
    for two threads at once."""

    def __init__(self, target: Target, head: MedusaHead, ends: TargetEnds) -> None:
        self.recorded = recorded_as(target, ends.device, inputs=StateInputs)
        self._head = head
        self._ends = ends
        self._watched = as_one(head, ends.head)

    def compute(self, states: Tensor, num_heads: int) -> Tensor | None:
        """As `MedusaHead.logits` of `states` (rows, hidden), (heads, rows, vocab); None where they
        must be computed without a graph."""
        if not self.recorded:
            return None
        (graphs,), call = self.recorded, StateCall(states, num_heads)
        with torch.no_grad():
            computed = graphs.score(call, self._forward, mode=None, model=self._watched)
        return None if computed is None else computed.logits.transpose(0, 1)

    def _forward(self, given: StateInputs, call: StateCall) -> Computed:
        logits = self._head.logits(given.states, call.num_heads, self._ends.logits)
        return Computed(logits.transpose(0, 1))
