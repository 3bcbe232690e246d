"""How a drafter's settings have a session's next tree grow, and what is proposed of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.drafters.draft_model.branching import BestBranching, DrawnBranching, affordable
from mmspec.drafters.draft_model.cape import Cape, CapeBranching
from mmspec.drafters.draft_model.growth import Branching, Growth
from mmspec.drafters.forwards import ForwardCost
from mmspec.sampling import DraftGuide
from mmspec.state import Prices
from mmspec.tree import TokenTree


class TreeSettings(Protocol):
    """Of a drafter whose trees hold the best tokens."""

    @property
    def max_depth(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_confidence(self) -> float: ...
    @property
    def cape(self) -> Cape | None: ...


class DrawSettings(TreeSettings, Protocol):
    """Of one that can draw them, too."""

    @property
    def draw(self) -> str: ...
    @property
    def profile(self) -> Sequence[int]: ...


class TreeSession(Protocol):
    """One request's, as far as its trees depend on it."""

    @property
    def guide(self) -> DraftGuide: ...
    @property
    def calibration(self) -> Calibration: ...
    @property
    def prices(self) -> Prices | None: ...


class DrawSession(TreeSession, Protocol):
    num_draws: int  # from q, over all proposals


def branching_of(
    settings: DrawSettings,
    session: DrawSession,
    index: int,
    *,
    budget: int,
    cost: ForwardCost,
    width: int,
    warp: Callable[[Tensor], Tensor] | None = None,
    is_coupled: bool = True,
) -> Branching:
    """As the settings say: tokens drawn from q in a shape that is set before, or the best ones
    (`best_of`). `warp` (nodes, vocab) -> the same, warped as the target's; None: the guide's."""
    guide = session.guide
    if settings.draw == "sample" and not guide.is_greedy:
        profile = affordable(settings.profile, budget)
        return DrawnBranching(
            guide, index, warp=warp or guide.warp, profile=profile, first_draw=session.num_draws
        )
    return best_of(
        settings,
        session,
        index,
        budget=budget,
        cost=cost,
        width=width,
        warp=warp,
        is_coupled=is_coupled,
    )


def best_of(
    settings: TreeSettings,
    session: TreeSession,
    index: int,
    *,
    budget: int,
    cost: ForwardCost,
    width: int,
    max_depth: int | None = None,
    warp: Callable[[Tensor], Tensor] | None = None,
    is_coupled: bool = True,
) -> Branching:
    """The best tokens below node 0, which stands at `index` of the text: `width` nodes a level go
    on, or a chain with what CaPE sets beside it, as deep as pays. `max_depth` None: the settings'.
    Not `is_coupled`: of another tokenizer's tokens, of which nobody tells what became of them."""
    guide, cape = session.guide, settings.cape
    depth = settings.max_depth if max_depth is None else max_depth
    best = BestBranching(
        guide,
        index,
        calibration=session.calibration if is_coupled else None,
        warp=warp or guide.warp,
        is_coupled=is_coupled,
        top_k=settings.top_k if cape is None else cape.most,
        max_depth=min(depth, budget, cost.affordable(session.prices)),
        min_confidence=max(
            settings.min_confidence, cost.least_likely(session.prices, session.calibration)
        ),
        budget=budget,
        width=width,
    )
    return best if cape is None else CapeBranching(best, cape)


def proposed(
    tree: TokenTree,
    growth: Growth,
    settings: DrawSettings,
    session: DrawSession,
    *,
    budget: int,
    vocab_size: int,
) -> TokenTree:
    """What is proposed of the `tree` that has grown: one that was drawn is whole and has its q,
    (nodes, vocab_size)."""
    if isinstance(growth.branching, DrawnBranching):
        session.num_draws += len(growth.expanded)
        return replace(tree, q=growth.q(vocab_size))
    return pruned(tree, settings, budget)


def pruned(tree: TokenTree, settings: TreeSettings, budget: int) -> TokenTree:
    """The best `budget` nodes. Leaves beside CaPE's chain are seldom likely, each for itself."""
    least = settings.min_confidence if settings.cape is None else 0.0
    return tree.prune(budget, min_confidence=least)
