"""What every verification rule takes and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree


class Chooser(Protocol):
    """The row's own way of choosing tokens: processors, noise, stop conditions."""

    @property
    def is_greedy(self) -> bool: ...

    @property
    def is_done(self) -> bool:
        """True once the last chosen token ended the text."""

    def choose(self, logits: Tensor) -> int:
        """The target's token after the chosen ones, given its raw logits (vocab,); records it."""

    def probabilities(self, logits: Tensor, ahead: Sequence[int] = ()) -> Tensor:
        """(vocab,) float64: what `choose` would sample from. Once a token, unless it chooses.

        With `ahead` the logits follow these tokens, which are not chosen yet and may never be.
        Raises ConfigError where the request's processors don't allow such a look.
        """

    def uniforms(self, count: int) -> Sequence[float]:
        """`count` numbers in (0, 1) that belong to the next token's place: asked for once there,
        before anything is chosen. Independent of the noise of `draw` and of drafters' draws."""

    def draw(self, probabilities: Tensor) -> int:
        """The token that the noise of the next place draws from (vocab,), which need not sum to 1;
        once a place. Records nothing."""

    def take(self, token: int) -> None:
        """The rule chose `token` to come after the chosen ones; records it as `choose` does."""


# (tree, logits (nodes, vocab), the row) -> what was accepted
Verifier = Callable[[TokenTree, Tensor, Chooser], Verdict]


@dataclass(frozen=True)
class Rule:
    """A verification rule, and what the engine must know of it. Itself a Verifier."""

    walk: Verifier
    only_chooses: bool = False  # takes of the logits the row's own choices, at nodes of the tree
    needs_q: bool = False  # takes trees that were drawn, whole: none pruned, none merged
    is_lossless: bool = True  # the texts have the target's own distribution

    def __call__(self, tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
        return self.walk(tree, logits, row)
