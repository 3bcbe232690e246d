"""Method: one way to draft, as what it costs and how much of it is accepted."""

from dataclasses import dataclass
from typing import Literal, Protocol

from mmspec.plan.roofline import Forward

Assumed = Literal["acceptance", "tokens a step"]
LOOKUP_S = 1e-4  # of the host, to find a continuation


@dataclass(frozen=True)
class Gain:
    """Speed beside plain decoding, at the best draft length."""

    ratio: float
    depth: int  # drafted tokens along a path
    nodes: int  # that the target scores a step, node 0 among them


class Method(Protocol):
    """One way to draft."""

    @property
    def name(self) -> str: ...

    @property
    def assumed(self) -> Assumed: ...

    @property
    def range(self) -> tuple[float, float]:
        """What is assumed, low and high."""

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain: ...
