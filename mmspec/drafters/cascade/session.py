"""One request's drafting by two levels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmspec.drafters.base import DraftSession, LearningSession, PreparedSession, RevisableSession
from mmspec.drafters.cascade.run import Run
from mmspec.drafters.compressed_kv.session import CompressedKVSession
from mmspec.drafters.growing.branching import BestBranching, DrawnBranching
from mmspec.drafters.growing.growth import Branching
from mmspec.state import Preparation, Prices, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.cascade.drafter import BoundCascade


_NEWEST = 0.2  # share of the newest run in what a forward is believed to give


class CascadeSession:
    """The two levels' sessions, and which of them is told what."""

    def __init__(
        self, drafter: "BoundCascade", lower: DraftSession, middle: CompressedKVSession
    ) -> None:
        self.lower = lower
        self.middle = middle
        self.prices: Prices | None = None
        self._tokens_per_forward = 1.0  # over the view
        self._drafter = drafter
        # Asked of each once: for a protocol that takes ten microseconds.
        self.revisable = lower if isinstance(lower, RevisableSession) else None
        self._prepared = lower if isinstance(lower, PreparedSession) else None

    def preparation(self, num_tokens: int) -> Preparation | None:
        """Of both levels."""
        due = self.middle.preparation(num_tokens)
        below = None if self._prepared is None else self._prepared.preparation(num_tokens)
        return below if due is None else due if below is None else due + below

    def prepare(self, tokens: Sequence[int]) -> None:
        if self._prepared is not None:
            self._prepared.prepare(tokens)
        self.middle.prepare(tokens)

    @property
    def least_s(self) -> float | None:
        return self._drafter.cost.forward_s

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._drafter.propose_together([self], [tokens], budget)[0]

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """The chain is the middle level's. A lower level that takes back was told of its trees by
        the middle level's verdicts, and has none of them left; but the target's states are here."""
        self.middle.observe(tree, verdict, scores)
        self.lower.observe(tree, verdict, scores)

    def learn(self, chosen: Sequence[int]) -> None:
        if isinstance(self.lower, LearningSession):
            self.lower.learn(chosen)

    def close(self) -> None:
        try:
            self.lower.close()
        finally:
            self.middle.close()

    def begin(self, tokens: Sequence[int], budget: int) -> Run | None:
        """A run from the text's end; None for a text that is too short for a view, or that the
        context has no room behind."""
        settings, guide, index = self._drafter.settings, self.middle.guide, len(tokens) - 1
        placement = self.middle.catch_up(tokens)
        room = min(self._drafter.middle.room(len(tokens)), guide.depth_below(index))
        depth = min(settings.max_depth, budget, room)
        if placement is None or depth <= 0:
            return None
        branching: Branching
        if self.middle.must_draw:  # the length looks at no token
            branching = DrawnBranching(
                guide, index, profile=(1,) * depth, first_draw=self.middle.num_draws
            )
        else:
            calibration = self.middle.calibration
            branching = BestBranching(
                guide, index, top_k=1, max_depth=depth, budget=depth, calibration=calibration
            )
        return Run(
            self,
            tokens,
            placement,
            branching,
            max_depth=depth,
            max_forwards=None if self.middle.must_draw else self._max_forwards,
            min_confidence=0.0 if self.middle.must_draw else self._least_likely,
        )

    @property
    def _max_forwards(self) -> int:
        drafter = self._drafter
        return min(drafter.settings.max_forwards, drafter.cost.affordable(self.prices))

    @property
    def _least_likely(self) -> float:
        """How likely a chain must be accepted to go on."""
        drafter = self._drafter
        paying = drafter.cost.least_likely(
            self.prices, self.middle.calibration, tokens=self._tokens_per_forward
        )
        return max(drafter.settings.middle.trees.min_confidence, paying)

    def ran(self, run: Run) -> None:
        """What a run came to."""
        if run.num_forwards:
            tokens = len(run.children) / run.num_forwards
            self._tokens_per_forward += _NEWEST * (tokens - self._tokens_per_forward)
