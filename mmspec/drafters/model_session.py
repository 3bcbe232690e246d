"""ModelSession: what the draft sessions have in common whose drafter runs a model."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import BatchDrafter
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.proposal import Proposal
from mmspec.state import Prices, Scores, Verdict
from mmspec.tree import TokenTree


class ModelDrafter(BatchDrafter, Protocol):
    """Drafts for all requests together, by a model's forwards."""

    @property
    def draws(self) -> bool:
        """As a DrawingDrafter has it."""

    @property
    def cost(self) -> ForwardCost | None:
        """What one forward costs; None where a proposal is one forward, however long."""


D = TypeVar("D", bound=ModelDrafter)


class ModelSession(Generic[D]):
    """One request's: it proposes through its drafter, which may take several requests together, and
    learns from what the target chose how often the drafter's tokens are accepted."""

    def __init__(self, drafter: D, guide: DraftGuide) -> None:
        self.guide = guide
        self.calibration = Calibration()
        self.prices: Prices | None = None
        self.num_draws = 0  # from q, over all proposals
        self._drafter = drafter
        self._proposal: Proposal | None = None  # of this step

    @property
    def must_draw(self) -> bool:
        """Whether its trees carry q: what is greedy follows the best."""
        return self._drafter.draws and not self.guide.is_greedy

    @property
    def least_s(self) -> float | None:
        cost = self._drafter.cost
        return None if cost is None else cost.forward_s

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        return self._drafter.propose_together([self], [tokens], budget)[0]

    def grown(self, growth: Growth, tokens: Sequence[int]) -> Proposal:
        """What a tree that has grown says in the target's tokens."""
        return growth.proposal

    def remember(self, proposal: Proposal) -> None:
        """What was proposed."""
        self._proposal = proposal

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        proposal, self._proposal = self._proposal, None
        if proposal is not None:
            proposal.teach(self.calibration, verdict.tokens)

    def close(self) -> None:
        """For sessions that hold nothing to give back."""
