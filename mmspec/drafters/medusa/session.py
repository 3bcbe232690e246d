"""One request's heads: the state that they read, and what became of what they said."""

from typing import TYPE_CHECKING

from torch import Tensor

from mmspec.drafters.model_session import ModelSession
from mmspec.sampling import DraftGuide
from mmspec.state import Prefill, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.medusa.drafter import BoundMedusa


class MedusaSession(ModelSession["BoundMedusa"]):
    """`state` (hidden,) is the target's at the place that chose the newest token. It is of the
    newest step alone: nothing is missing behind a prompt's beginning that was reused."""

    def __init__(self, drafter: "BoundMedusa", prefill: Prefill, guide: DraftGuide) -> None:
        super().__init__(drafter, guide)
        self.state: Tensor = prefill.hidden[drafter.tap][-1].clone()

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        super().observe(tree, verdict, scores)
        self.state = scores.hidden[self._drafter.tap][verdict.path[-1]].clone()
