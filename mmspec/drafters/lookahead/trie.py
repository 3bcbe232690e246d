"""NgramTrie: n-grams and the window's columns, as one tree."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Proposal
from mmspec.tree import TokenTree

_RANKS = 4  # of n-grams, and depths, told apart by the calibration


@dataclass(frozen=True)
class Guessed(Proposal):
    """And where its nodes come from."""

    found: tuple[bool, ...]  # (nodes,) whether the window alone has brought it
    paths: tuple[tuple[int, ...], ...]  # (columns,) of the window, down to its last level


class NgramTrie:
    """Nodes below node 0, as paths are added."""

    def __init__(self, token: int, drafter: str, calibration: Calibration) -> None:
        self._tokens, self._parents, self._confidence = [token], [-1], [1.0]
        self._buckets: list[Hashable] = [None]
        self._found = [False]
        self._scouts = set[int]()
        self._paths: tuple[tuple[int, ...], ...] = ()
        self._drafter = drafter
        self._calibration = calibration
        self._child_of: dict[tuple[int, int], int] = {}

    @property
    def num_drafted(self) -> int:
        return len(self._tokens) - 1

    def add_guess(self, tail: Sequence[int], *, rank: int, was_read: bool) -> None:
        """An n-gram that may follow node 0; `rank` among those, 0 the newest."""
        for node in self._add(tail, ("pool", min(rank, _RANKS))):
            self._found[node] &= not was_read

    def add_window(self, paths: Sequence[tuple[int, ...]]) -> None:
        """The window's columns: all of their nodes are scouts."""
        self._paths = tuple(paths)
        for path in paths:
            self._scouts.update(self._add(path, ("window", 0)))

    @property
    def proposal(self) -> Guessed:
        tree = TokenTree(
            tuple(self._tokens),
            tuple(self._parents),
            tuple(self._confidence),
            ("", *[self._drafter] * self.num_drafted),
            scouts=frozenset(self._scouts),
        )
        return Guessed(tree, tuple(self._buckets), tuple(self._found), self._paths)

    def _add(self, path: Sequence[int], kind: tuple[str, int]) -> list[int]:
        """The nodes of `path`; those that were not there before are of `kind`."""
        nodes, node = list[int](), 0
        for depth, token in enumerate(path, start=1):
            known = self._child_of.get((node, token))
            if known is None:
                known = self._child_of[node, token] = len(self._tokens)
                bucket = (*kind, min(depth, _RANKS))
                self._tokens.append(token)
                self._parents.append(node)
                self._buckets.append(bucket)
                self._found.append(True)
                self._confidence.append(self._calibration.rate(bucket, _prior(*bucket)))
            node = known
            nodes.append(node)
        return nodes


def _prior(kind: str, rank: int, depth: int) -> float:
    """What is believed of a node before any was seen."""
    if kind == "window":
        return 0.1
    return 0.4 / (1 + rank) if depth == 1 else 0.7
