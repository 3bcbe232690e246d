"""What every verification rule takes and gives."""

from collections.abc import Callable
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


# (tree, logits (nodes, vocab), the row) -> what was accepted
Verifier = Callable[[TokenTree, Tensor, Chooser], Verdict]
