"""One request's heads: the state that they read, and what became of what they said."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.drafters.medusa.trees import Grown
from mmspec.drafters.walked import learn_choices
from mmspec.sampling import DraftGuide
from mmspec.state import Prefill, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.medusa.drafter import BoundMedusa


class MedusaSession:
    """`state` (hidden,) is the target's at the place that chose the newest token. It is of the
    newest step alone: nothing is missing behind a prompt's beginning that was reused."""

    def __init__(self, drafter: "BoundMedusa", prefill: Prefill, guide: DraftGuide) -> None:
        self.guide = guide
        self.calibration = Calibration()
        self.num_draws = 0  # from q, over all proposals
        self.state: Tensor = prefill.hidden[drafter.tap][-1].clone()
        self._drafter = drafter
        self._grown: Grown | None = None

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._drafter.propose_together([self], [tokens], budget)[0]

    def remember(self, grown: Grown) -> None:
        """What was proposed."""
        self._grown = grown

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """The target's choices tell of every child on the way, scored or not."""
        self.state = scores.hidden[self._drafter.tap][verdict.path[-1]].clone()
        grown, self._grown = self._grown, None
        if grown is not None:
            learn_choices(self.calibration, grown.tree, grown.buckets, verdict.tokens)

    def close(self) -> None:
        pass
