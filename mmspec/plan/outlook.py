"""Outlook: what to expect of a model on a machine, by batch and context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmspec.plan.method import Gain, Method
from mmspec.plan.roofline import Forward

_CONTEXTS = tuple(2**power for power in range(8, 21))  # where break-even is sought: 256 to 1M
SCORED_NODES = (1, 16, 64, 128)
_DRAFTED = 64  # nodes a row, as decode.max_nodes says unless it is set


@dataclass(frozen=True)
class Prospect:
    """One drafter at one place."""

    method: str
    low: Gain
    high: Gain


@dataclass(frozen=True)
class Place:
    """One batch and context."""

    batch: int
    context: int  # committed tokens a row
    fits: bool  # weights and KV, into the machine's memory
    is_beyond: bool  # longer than what the model was made for
    kv_bytes: float  # of all rows, with their running states and those of drafted nodes
    score_s: dict[int, float]  # nodes -> seconds of a score call; 1: a plain step
    prospects: tuple[Prospect, ...]

    @property
    def plain_s(self) -> float:
        return self.score_s[1]


@dataclass(frozen=True)
class PaysAt:
    """Contexts, within 256 to 1M, where a drafter is faster than plain decoding."""

    method: str
    batch: int
    contexts: tuple[tuple[int, int], ...]  # (first, last) of each stretch, low assumption

    @property
    def text(self) -> str:
        """In words: "everywhere", "never", "from 12k", "up to 30k"."""
        parts = [_stretch(first, last) for first, last in self.contexts]
        return ", ".join(parts) or "never"


@dataclass(frozen=True)
class Outlook:
    """All places, and where each drafter starts to pay."""

    target: Forward
    places: tuple[Place, ...]
    pays: tuple[PaysAt, ...]


def outlook(
    target: Forward,
    methods: Sequence[Method],
    *,
    contexts: Sequence[int],
    batches: Sequence[int],
    nodes: Sequence[int] = SCORED_NODES,
) -> Outlook:
    """Computes every batch with every context."""
    places = [
        _place(target, methods, batch, context, sorted({1, *nodes}))
        for batch in batches
        for context in contexts
    ]
    pays = [
        PaysAt(method.name, batch, _paying(target, method, batch))
        for method in methods
        for batch in batches
    ]
    return Outlook(target, tuple(places), tuple(pays))


def short(tokens: int) -> str:
    """4096 -> "4k", 100 -> "100"."""
    if tokens >= 2**20:
        return f"{tokens / 2**20:.3g}M"
    return f"{tokens / 1024:.3g}k" if tokens >= 1024 else str(tokens)


def _place(
    target: Forward, methods: Sequence[Method], batch: int, context: int, nodes: Sequence[int]
) -> Place:
    prospects = []
    for method in methods:
        low, high = (
            method.gain(target, value, context=context, batch=batch) for value in method.range
        )
        prospects.append(Prospect(method.name, low, high))
    return Place(
        batch,
        context,
        target.fits(context=context, batch=batch, nodes=_DRAFTED),
        0 < target.shape.max_context < context,
        batch * target.row_bytes(context, nodes=_DRAFTED),
        {count: target.seconds(count, context=context, batch=batch) for count in nodes},
        tuple(prospects),
    )


def _paying(target: Forward, method: Method, batch: int) -> tuple[tuple[int, int], ...]:
    def pays(context: int) -> bool:
        return method.gain(target, method.range[0], context=context, batch=batch).ratio >= 1.0

    known = [pays(context) for context in _CONTEXTS]
    stretches: list[tuple[int, int]] = []
    first = _CONTEXTS[0]
    for index, context in enumerate(_CONTEXTS):
        if index and known[index] != known[index - 1]:
            border = _bisect(_CONTEXTS[index - 1], context, pays)
            if known[index]:
                first = border
            else:
                stretches.append((first, border - 1))
    if known[-1]:
        stretches.append((first, _CONTEXTS[-1]))
    return tuple(stretches)


def _bisect(below: int, above: int, pays: Callable[[int], bool]) -> int:
    """The first context after `below` where it is as at `above`."""
    wanted = pays(above)
    while above - below > 1:
        middle = (below + above) // 2
        if pays(middle) == wanted:
            above = middle
        else:
            below = middle
    return above


def _stretch(first: int, last: int) -> str:
    starts, ends = first == _CONTEXTS[0], last == _CONTEXTS[-1]
    if starts and ends:
        return "everywhere"
    if starts:
        return f"up to {short(last)}"
    return f"from {short(first)}" if ends else f"{short(first)} to {short(last)}"
