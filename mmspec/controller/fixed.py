"""FixedController: the same steps whatever the clock says."""

from collections.abc import Sequence

from mmspec.controller.pace import Pace
from mmspec.state import Preparation, Prices, Verdict
from mmspec.tree import TokenTree


class FixedController:
    """Always asks, always scores the whole tree."""

    def step(self, paces: Sequence[Pace], context: int) -> "FixedStep":
        return FixedStep(paces)


class FixedStep:
    """A step without choices; counts what was done."""

    def __init__(self, paces: Sequence[Pace]) -> None:
        self.paces = paces

    @property
    def lets_drafts_wait(self) -> bool:
        return False

    def sleeps(self, row: int) -> bool:
        return False

    def order(self, drafters: Sequence[str]) -> Sequence[str]:
        return drafters

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        return True

    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        return True

    def prepared(self, row: int, drafter: str, due: Preparation, seconds: float) -> None:
        pace = self.paces[row]
        pace.prepared_s[drafter] = pace.prepared_s.get(drafter, 0.0) + seconds

    def prices(self, row: int, drafter: str) -> Prices | None:
        return None

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        self.paces[row].asked[drafter] += 1

    def drop(self, trees: Sequence[TokenTree]) -> bool:
        return any(tree.num_nodes > 1 for tree in trees)

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        for pace, tree in zip(self.paces, trees, strict=True):
            pace.budgets[tree.num_nodes - 1] += 1
        return list(trees)

    def spent(self, seconds: float) -> None:
        pass

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        pass
