"""Bucket: the shapes of one graph, and which calls it takes."""

from dataclasses import dataclass

_NODES = (1, 2, 4, 8, 16, 32, 64, 128)
_MAX_ROWS = 64
_LEAST_TAIL = 32  # its mask is a word of bits a node, whatever fewer tokens there are
_LEAST_COLUMNS = 512


@dataclass(frozen=True)
class Bucket:
    """Sizes that a call is padded to: to the next of a few, so that a few graphs do for all."""

    rows: int
    nodes: int  # a row, that the call computes
    tail: int  # uncommitted tokens of a row, nodes that earlier calls wrote among them
    columns: int  # tokens of a row, at most: attention divides its work by it
    planes: int  # of position ids: 1, or the three of M-RoPE

    @staticmethod
    def of(*, rows: int, nodes: int, tail: int, columns: int, planes: int) -> "Bucket | None":
        """The bucket of a call of these sizes; None for one too large to be worth a graph."""
        if rows > _MAX_ROWS or nodes > _NODES[-1] or tail > 2 * _NODES[-1]:
            return None
        return Bucket(
            _power_of_two(rows),
            next(size for size in _NODES if size >= nodes),
            max(_power_of_two(tail), _LEAST_TAIL),
            max(_power_of_two(columns), _LEAST_COLUMNS),
            planes,
        )

    @staticmethod
    def fixed(rows: int, nodes: int, *, columns: int, planes: int) -> "Bucket":
        """Of bitwise mode: as many rows and nodes as all its calls have. More columns are more
        room, nothing is divided by them."""
        return Bucket(rows, nodes, nodes, max(_power_of_two(columns), _LEAST_COLUMNS), planes)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
