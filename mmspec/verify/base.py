"""What every verification rule takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rule:
    """A verification rule, and what the engine must know of it. Itself a Verifier.

    A walk that only chooses, or that asks for nothing but `weigh`, waits once a step for the
    device, whatever the tree and however many rows.
    """

    walk: Verifier
    weigh: Weigh | None = None  # what the walk weighs nodes by; None: it may be anything
    only_chooses: bool = False  # takes of the logits the row's own choices, at nodes of the tree
    needs_q: bool = False  # takes trees that were drawn, whole: none pruned, none merged
    is_greedy_only: bool = False  # requests that sample are refused
    is_lossless: bool = True  # the texts have the target's own distribution

    def __call__(self, tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
        return self.walk(tree, logits, row)
