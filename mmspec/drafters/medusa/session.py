"""One request's heads: the state that they read, and what became of what they said."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.model_session import ModelSession
from mmspec.state import Prefill, Scores, Verdict
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.medusa.drafter import BoundMedusa


class MedusaSession(ModelSession["BoundMedusa"]):
    """`state` (hidden,) is the target's at the place that chose the newest token. It is of the
    newest step alone: nothing is missing behind a prompt's beginning that was reused."""

    def __init__(self, drafter: "BoundMedusa", prefill: Prefill, guide: DraftGuide) -> None:
        super().__init__(drafter, guide)
        # Where the state is found, once it is asked for: a copy, as these may be a whole prompt's.
        self._hidden: Mapping[int, Tensor] = {drafter.tap: prefill.hidden[drafter.tap][-1:].clone()}
        self._place = 0

    @property
    def state(self) -> Tensor:
        return self._hidden[self._drafter.tap][self._place]

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        super().observe(tree, verdict, scores)
        self._hidden, self._place = scores.hidden, verdict.path[-1]
