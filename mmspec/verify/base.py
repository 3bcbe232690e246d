"""What every verification rule takes and gives."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.weighing import Odds, Weigh


class Chooser(Protocol):
    """The row's own way of choosing tokens: processors, noise, stop conditions."""

    @property
    def is_greedy(self) -> bool: ...

    @property
    def is_done(self) -> bool:
        """True once the last chosen token ended the text."""

    def choose(self, logits: Tensor) -> int:
        """The target's token after the chosen ones, given its raw logits (vocab,); records it."""

    def weigh(
        self, weigh: Weigh, tree: TokenTree, logits: Tensor, nodes: Sequence[int], *, at: int
    ) -> list[Odds]:
        """What `weigh` makes of `nodes`, given the raw `logits` (nodes, vocab) of the whole tree.
        The walk has come to node `at`; the others lie below it. Each node once, unless `choose`
        is asked there.

        Raises ConfigError for nodes below `at` where the request's processors don't allow a look
        past tokens that may be rejected; DecodeError as `choose` does.
        """

    def uniforms(self, count: int) -> Sequence[float]:
        """`count` numbers in (0, 1) that belong to the next token's place: asked for once there,
        before anything is chosen. Independent of the noise of `Odds.draw` and of drafters' draws.
        """

    def take(self, token: int, odds: Odds) -> None:
        """The rule chose `token` to come after the chosen ones, by what was weighed of the last of
        them; records it as `choose` does."""


# (tree, logits (nodes, vocab), the row) -> what was accepted
Verifier = Callable[[TokenTree, Tensor, Chooser], Verdict]
