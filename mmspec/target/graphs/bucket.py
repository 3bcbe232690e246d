"""Bucket: the shapes of one graph, and which calls it takes."""

from collections.abc import Sequence
from dataclasses import dataclass

_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_MAX_ROWS = 64
_LEAST_TAIL = 32  # its mask is a word of bits a node, whatever fewer tokens there are
_LEAST_COLUMNS = 512
_STEPS = 4  # numbers of levels from one power of two to the next: each is a call of every mixer


@dataclass(frozen=True)
class Bucket:
    """Sizes that a call is padded to: to the next of a few, so that a few graphs do for all."""

    rows: int
    nodes: int  # a row, that the call computes
    tail: int  # uncommitted tokens of a row, nodes that earlier calls wrote among them
    columns: int  # tokens of a row, at most: attention divides its work by it
    planes: int  # of position ids: 1, or the three of M-RoPE
    levels: tuple[int, ...] = ()  # entries of each, for mixers with running states
    is_chain: bool = False  # in each level, an entry a row

    @staticmethod
    def of(
        *,
        rows: int,
        nodes: int,
        tail: int,
        columns: int,
        planes: int,
        levels: Sequence[int] = (),
        is_chain: bool = False,
    ) -> "Bucket | None":
        """The bucket of a call of these sizes; None for one too large to be worth a graph."""
        if rows > _MAX_ROWS or nodes > _NODES[-1] or tail > 2 * _NODES[-1]:
            return None
        return Bucket(
            _power_of_two(rows),
            next(size for size in _NODES if size >= nodes),
            max(_power_of_two(tail), _LEAST_TAIL),
            max(_power_of_two(columns), _LEAST_COLUMNS),
            planes,
            _padded(levels, rows if is_chain else None),
            is_chain,
        )

    @staticmethod
    def fixed(rows: int, nodes: int, *, columns: int, planes: int) -> "Bucket":
        """Of bitwise mode: as many rows and nodes as all its calls have. More columns are more
        room, nothing is divided by them."""
        return Bucket(rows, nodes, nodes, max(_power_of_two(columns), _LEAST_COLUMNS), planes)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(levels: Sequence[int], rows: int | None) -> tuple[int, ...]:
    """As many levels as a few buckets have: of the `rows` of a chain each, or all of the widest
    one's size but the first, which has the roots."""
    step = max(_power_of_two(len(levels)) // (2 * _STEPS), 1)
    count = -(-len(levels) // step) * step
    if rows is not None or not levels:
        return (_power_of_two(rows or 0),) * count
    return (_power_of_two(levels[0]), *[_power_of_two(max(levels))] * (count - 1))
