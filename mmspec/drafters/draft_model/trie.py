"""Paths of target ids joined to one tree, with how likely each is."""

from collections.abc import Sequence

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Proposal, ProposalBuilder

_LEVELS = 8  # of belief, told apart by the calibration


class PathTrie:
    """Grows by whole paths below node 0."""

    def __init__(self, root: int, drafter: str) -> None:
        self._root = root
        self._drafter = drafter
        # (chance, whether it is open: in a last word, which what follows might change) by path
        self._nodes: dict[tuple[int, ...], tuple[float, bool]] = {(): (1.0, False)}

    def add(self, tokens: Sequence[int], chances: Sequence[float], *, num_certain: int) -> None:
        """One path; `chances` estimate that it is accepted down to each token, and never grow.
        What follows may change those behind the first `num_certain`."""
        for place, chance in enumerate(chances):
            path = tuple(tokens[: place + 1])
            known, is_open = self._nodes.get(path, (chance, True))
            self._nodes[path] = max(known, chance), is_open and place >= num_certain

    def proposal(self, calibration: Calibration) -> Proposal:
        built = ProposalBuilder(self._root, self._drafter)
        numbers: dict[tuple[int, ...], int] = {(): 0}
        for path, (chance, is_open) in self._nodes.items():
            if path:
                belief = min(chance / max(self._nodes[path[:-1]][0], 1e-9), 1.0)
                bucket = (is_open, int(belief * (_LEVELS - 0.01)))
                rate = calibration.rate(bucket, belief)
                numbers[path] = built.add(numbers[path[:-1]], path[-1], rate, bucket)
        return built.built()
