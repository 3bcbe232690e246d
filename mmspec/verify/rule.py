"""Rule: a verification rule, and what the engine must know of it."""

from dataclasses import dataclass

from torch import Tensor

from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser, Verifier
from mmspec.verify.coupled import coupled
from mmspec.verify.weighing import Weigh


@dataclass(frozen=True)
class Rule:
    """Itself a Verifier. Greedy requests, and node 0 alone, it never comes to: they are walked by
    the target's own choices.

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
        return self.walk_of(tree, row)(tree, logits, row)

    def walk_of(self, tree: TokenTree, row: Chooser) -> Verifier:
        """The walk down this tree."""
        return coupled if row.is_greedy or tree.num_nodes == 1 else self.walk
