"""What the decode loop asks of a controller."""

from collections.abc import Sequence
from typing import Protocol

from mmspec.controller.pace import Pace
from mmspec.state import Preparation, Prices, Verdict
from mmspec.tree import TokenTree


class Step(Protocol):
    """One step's decisions, for all rows of a batch."""

    @property
    def lets_drafts_wait(self) -> bool:
        """Whether what is proposed may come a step late, so that no device waits for it."""

    def sleeps(self, row: int) -> bool:
        """Whether nobody is asked for the row, so that nobody need be weighed either."""

    def order(self, drafters: Sequence[str]) -> Sequence[str]:
        """In which order they are asked; as they stand is how the user named them."""

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        """Whether to ask the drafter for `row`, which has `tree` from others. `least_s`: what it
        takes at least, if it keeps to `Prices.most_s`."""

    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        """Whether what the drafter has to do first may be done, where it would be asked. If not,
        it is asked only if that can wait."""

    def prepared(self, row: int, drafter: str, due: Preparation, seconds: float) -> None:
        """It was done."""

    def prices(self, row: int, drafter: str) -> Prices | None:
        """What the row's time buys; None where that shall not matter, or is not known."""

    def learn(
        self, row: int, drafter: str, before: TokenTree, after: TokenTree, seconds: float
    ) -> None:
        """The drafter was asked, took `seconds` and made `after` of `before`."""

    def drop(self, trees: Sequence[TokenTree]) -> bool:
        """Whether anything of each row's tree would be scored, in a step that it comes too late
        for. Who proposed it is asked again for the next one. To be told before `cut`."""

    def cut(self, trees: Sequence[TokenTree]) -> list[TokenTree]:
        """What is to be scored of each row's tree."""

    def spent(self, seconds: float) -> None:
        """What preparing, asking and deciding took, all told."""

    def observe(self, verdicts: Sequence[Verdict | None], seconds: float) -> None:
        """What became of the trees that `cut` gave, and the seconds from score to commit."""


class Controller(Protocol):
    """Shared by all requests of an engine."""

    def step(self, paces: Sequence[Pace], context: int) -> Step:
        """Decides for a batch whose longest row has `context` tokens."""
