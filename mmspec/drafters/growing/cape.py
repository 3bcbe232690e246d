"""CaPE: how many candidates stand beside a drafted chain depends on how sure its drafter is."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from mmspec.drafters.growing.branching import BestBranching
from mmspec.drafters.growing.growth import Candidates, Child, Growth
from mmspec.errors import ConfigError

BranchingName = Literal["best", "cape"]

THRESHOLDS = (0.3, 0.6, 0.8)
WIDTHS = (8, 6, 4, 2)


@dataclass(frozen=True)
class Cape:
    """Candidates by confidence: `widths[i]` of them, the first included, where that of the first
    is above `thresholds[i - 1]` and not above `thresholds[i]`.

    As published, 7, 5, 3 or 1 stand beside the first for a confidence in (0, 0.3], (0.3, 0.6],
    (0.6, 0.8] or (0.8, 1] (GliDe with CaPE, arXiv 2402.02082 section 3.2).
    """

    thresholds: tuple[float, ...] = THRESHOLDS  # increasing, in (0, 1)
    widths: tuple[int, ...] = WIDTHS  # one more of them, each 1 or more

    @property
    def most(self) -> int:
        """Candidates that a position has at most."""
        return max(self.widths)

    def width(self, confidence: float) -> int:
        """Candidates for a position, the first of which is believed in so much."""
        return self.widths[bisect_left(self.thresholds, confidence)]


def cape_of(
    branching: str, *, thresholds: Sequence[float], widths: Sequence[int], where: str
) -> Cape | None:
    """What a drafter's settings say; None for "best". `where` is their section of the config.

    Raises ConfigError for values that make no sense.
    """
    if branching not in get_args(BranchingName):
        raise ConfigError(
            f"{where}.branching={branching!r}: expected one of {', '.join(get_args(BranchingName))}"
        )
    between = list(thresholds)
    if between != sorted(set(between)) or not all(0 < bound < 1 for bound in between):
        raise ConfigError(
            f"{where}.cape_thresholds={between}: expected increasing numbers within (0, 1)"
        )
    if len(widths) != len(between) + 1 or not all(width >= 1 for width in widths):
        raise ConfigError(
            f"{where}.cape_widths={list(widths)}: expected one width of 1 or more for each of the "
            f"{len(between) + 1} intervals between {len(between)} thresholds"
        )
    return Cape(tuple(between), tuple(widths)) if branching == "cape" else None


class CapeBranching:
    """A chain of first candidates, beside which the others are leaves (GliDe with CaPE, arXiv
    2402.02082 section 3.2).

    Candidates and what is believed of them are those of `best`, so with noise the confidence is
    that of the first under this noise, not its q.
    """

    def __init__(self, best: BestBranching, cape: Cape) -> None:
        """`best` offers at least `cape.most` children a node, and ends the chain."""
        self._best = best
        self._cape = cape

    @property
    def is_set(self) -> bool:
        return self._best.is_set

    def find(self, logits: Tensor, depths: Sequence[int], draws: Sequence[int]) -> Candidates:
        return self._best.find(logits, depths, draws)

    def children(self, tokens: Sequence[int], beliefs: Sequence[float]) -> list[Child]:
        children = self._best.children(tokens, beliefs)
        return children[: self._cape.width(children[0].rate)] if children else []

    def goes_on(self, growth: Growth, level: Sequence[int]) -> list[int]:
        return self._best.goes_on(growth, level[:1])
