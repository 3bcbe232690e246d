"""From a drafter's settings to the way a session's next tree grows, and what is proposed of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.drafters.forwards import ForwardCost
from mmspec.drafters.growing.branching import BestBranching, DrawnBranching, affordable
from mmspec.drafters.growing.cape import CapeBranching
from mmspec.drafters.growing.growth import Branching, Growth
from mmspec.drafters.growing.settings import TreeSettings
from mmspec.drafters.proposal import Proposal
from mmspec.sampling import DraftGuide
from mmspec.state import Prices
from mmspec.tree import TokenTree


class TreeSession(Protocol):
    """A draft session, as far as its trees depend on it."""

    num_draws: int  # from q, over all proposals

    @property
    def guide(self) -> DraftGuide: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def prices(self) -> Prices | None: ...
    def remember(self, proposal: Proposal) -> None: ...


def branching_of(
    settings: TreeSettings,
    session: TreeSession,
    index: int,
    *,
    budget: int,
    cost: ForwardCost,
    max_depth: int | None = None,
    warp: Callable[[Tensor], Tensor] | None = None,
    is_coupled: bool = True,
) -> Branching:
    """As the settings say, below node 0, which stands at `index` of the text: tokens drawn from q
    in a shape that is set before; or the best ones, `settings.width` nodes a level going on, or a
    chain with what CaPE sets beside it, as deep as pays.

    `max_depth` None: the settings'. `warp` (nodes, vocab) -> the same, warped as the target's;
    None: the guide's. Not `is_coupled`: of another tokenizer's tokens, of which nobody tells what
    became of them.
    """
    guide, cape = session.guide, settings.cape
    warp = warp or guide.warp
    if settings.draws and not guide.is_greedy:
        profile = affordable(settings.profile, budget)
        return DrawnBranching(
            guide, index, warp=warp, profile=profile, first_draw=session.num_draws
        )
    depth = settings.max_depth if max_depth is None else max_depth
    best = BestBranching(
        guide,
        index,
        calibration=session.calibration if is_coupled else None,
        warp=warp,
        is_coupled=is_coupled,
        top_k=settings.top_k if cape is None else cape.most,
        max_depth=min(depth, budget, cost.affordable(session.prices)),
        min_confidence=max(
            settings.min_confidence, cost.least_likely(session.prices, session.calibration)
        ),
        budget=budget,
        width=settings.width,
    )
    return best if cape is None else CapeBranching(best, cape)


def proposed(
    growth: Growth,
    settings: TreeSettings,
    session: TreeSession,
    *,
    budget: int,
    vocab_size: int,
    proposal: Proposal | None = None,
) -> TokenTree:
    """What is proposed of the tree that has grown: one that was drawn is whole and has its q,
    (nodes, vocab_size); of another one the best `budget` nodes. The session learns from the whole
    of it. `proposal`: the tree in the target's tokens, where it has grown in others."""
    proposal = proposal or Proposal(growth.tree, tuple(growth.buckets))
    session.remember(proposal)
    tree = proposal.tree
    if isinstance(growth.branching, DrawnBranching):
        session.num_draws += len(growth.expanded)
        return replace(tree, q=growth.q(vocab_size))
    # Leaves beside CaPE's chain are seldom likely, each for itself.
    least = settings.min_confidence if settings.cape is None else 0.0
    return tree.prune(budget, min_confidence=least)
