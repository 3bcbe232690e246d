"""NgramTrie: n-grams and the window's columns, as one tree."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Proposal, ProposalBuilder

_RANKS = 4  # of n-grams, and depths, told apart by the calibration


@dataclass(frozen=True)
class Guessed(Proposal):
    """And where its nodes come from."""

    found: tuple[bool, ...]  # (nodes,) whether the window alone has brought it
    paths: tuple[tuple[int, ...], ...]  # (columns,) of the window, down to its last level


class NgramTrie:
    """Nodes below node 0, as paths are added."""

    def __init__(self, token: int, drafter: str, calibration: Calibration) -> None:
        self._nodes = ProposalBuilder(token, drafter)
        self._found = [False]
        self._scouts = set[int]()
        self._paths: tuple[tuple[int, ...], ...] = ()
        self._calibration = calibration

    @property
    def num_drafted(self) -> int:
        return len(self._nodes) - 1

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
        built = self._nodes.built(scouts=self._scouts)
        return Guessed(built.tree, built.buckets, tuple(self._found), self._paths)

    def _add(self, path: Sequence[int], kind: tuple[str, int]) -> list[int]:
        """The nodes of `path`; those that were not there before are of `kind`."""
        nodes, node = list[int](), 0
        for depth, token in enumerate(path, start=1):
            known = self._nodes.child(node, token)
            if known is None:
                bucket = (*kind, min(depth, _RANKS))
                rate = self._calibration.rate(bucket, _prior(*bucket))
                known = self._nodes.add(node, token, rate, bucket)
                self._found.append(True)
            node = known
            nodes.append(node)
        return nodes


def _prior(kind: str, rank: int, depth: int) -> float:
    """What is believed of a node before any was seen."""
    if kind == "window":
        return 0.1
    return 0.4 / (1 + rank) if depth == 1 else 0.7
