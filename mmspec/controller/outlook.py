"""Outlook: what a drafted tree promises, by what became of nodes like its own."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from mmspec.calibration import Calibration
from mmspec.state import Verdict
from mmspec.tree import TokenTree

BUDGETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)
# drafted nodes a row that are weighed against each other

_LEVELS = 8  # of confidence, told apart by the calibration


@dataclass(frozen=True)
class Outlook:
    """A drafted tree, and the same with confidences as they turned out for nodes like its own."""

    drafted: TokenTree
    tree: TokenTree
    buckets: tuple[tuple[str, int], ...]  # (nodes - 1,) what counts as alike, of nodes 1, 2, ...

    @staticmethod
    def of(drafted: TokenTree, own: Calibration, shared: Calibration) -> "Outlook":
        """By what the request has seen itself first, by what all others have second."""
        pairs = zip(drafted.drafters[1:], drafted.confidence[1:], strict=True)
        buckets = tuple((drafter, int(believed * (_LEVELS - 0.01))) for drafter, believed in pairs)
        rates = [
            own.rate(bucket, shared.rate(bucket, believed))
            for bucket, believed in zip(buckets, drafted.confidence[1:], strict=True)
        ]
        rates = _possible(drafted.parents[1:], rates)
        return Outlook(drafted, replace(drafted, confidence=(1.0, *rates)), buckets)

    @cached_property
    def tokens(self) -> list[float]:
        """Expected tokens of a step that scores the tree's best nodes, for each of `BUDGETS` up
        to the first that holds them all."""
        scouts, likely = self.tree.scouts, self.tree.cumulative_confidence
        others = sorted((p for n, p in enumerate(likely) if n not in scouts), reverse=True)
        sums = list(accumulate(others, initial=sum(likely[n] for n in scouts)))[1:]
        least, last = len(scouts), self.tree.num_nodes - 1  # scouts are scored in any case
        return [
            sums[min(max(n, least), last) - least]
            for n in BUDGETS[: bisect_left(BUDGETS, last) + 1]
        ]

    def with_scouts(self, most: int) -> "Outlook":
        """The same, with at most so many nodes that are scored whatever they promise."""
        tree = self.tree.with_scouts(most)
        return self if tree is self.tree else replace(self, tree=tree)

    def best(self, budget: int) -> "Outlook":
        """Its best `budget` nodes, and all of its scouts."""
        budget = max(budget, len(self.tree.scouts))
        if budget >= self.tree.num_nodes - 1:
            return self
        kept = self.tree.best(budget)
        buckets = tuple(self.buckets[node - 1] for node in kept[1:])
        return Outlook(self.drafted, self.tree.keep(kept), buckets)

    def outcomes(self, verdict: Verdict) -> Iterator[tuple[tuple[str, int], bool]]:
        """Of each node whose parent was accepted: what it is like, and whether it was."""
        accepted = set(verdict.path)
        for node, (parent, bucket) in enumerate(
            zip(self.tree.parents[1:], self.buckets, strict=True), start=1
        ):
            if parent in accepted:
                yield bucket, node in accepted


def _possible(parents: Sequence[int], rates: list[float]) -> list[float]:
    """`rates` of nodes 1, 2, ..., of which each is at most what its likelier siblings leave: two
    drafters may be sure of different tokens, of which the target chooses one."""
    if len(set(parents)) == len(parents):
        return rates
    left, possible = dict[int, float](), rates.copy()
    for place in sorted(range(len(rates)), key=lambda place: -rates[place]):
        rest = left.get(parents[place], 1.0)
        possible[place] = min(rates[place], rest)
        left[parents[place]] = rest - possible[place]
    return possible
