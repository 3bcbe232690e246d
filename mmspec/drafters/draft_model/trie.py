"""Paths of target ids joined to one tree, with how likely each is."""

from collections.abc import Sequence

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Proposal, ProposalBuilder

_LEVELS = 8  # of belief, told apart by the calibration


class PathTrie:
    """Grows by whole paths below node 0."""

    def __init__(self, root: int, drafter: str) -> None:
        self._tokens, self._parents, self._chances = [root], [-1], [1.0]
        self._is_open = [False]  # in the last word of a path, which what follows might change
        self._child: dict[tuple[int, int], int] = {}
        self._drafter = drafter

    def add(self, tokens: Sequence[int], chances: Sequence[float], *, num_certain: int) -> None:
        """One path; `chances` estimate that it is accepted down to each token, and never grow.
        What follows may change those behind the first `num_certain`."""
        node = 0
        for place, (token, chance) in enumerate(zip(tokens, chances, strict=True)):
            is_open = place >= num_certain
            child = self._child.get((node, token))
            if child is None:
                child = self._child[node, token] = len(self._tokens)
                self._tokens.append(token)
                self._parents.append(node)
                self._chances.append(chance)
                self._is_open.append(is_open)
            self._chances[child] = max(self._chances[child], chance)
            self._is_open[child] = self._is_open[child] and is_open
            node = child

    def proposal(self, calibration: Calibration) -> Proposal:
        built = ProposalBuilder(self._tokens[0], self._drafter)
        for node in range(1, len(self._tokens)):
            parent = self._parents[node]
            belief = min(self._chances[node] / max(self._chances[parent], 1e-9), 1.0)
            bucket = (self._is_open[node], int(belief * (_LEVELS - 0.01)))
            built.add(parent, self._tokens[node], calibration.rate(bucket, belief), bucket)
        return built.built()
