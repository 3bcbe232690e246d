"""Verification rules: which of a tree's nodes the target accepts. One rule, one file.

`coupled` gives the seed's own text, whatever the tree; `greedy` is the same for requests that do
not sample. The other lossless ones keep the target's distribution, for trees that were drawn.
docs/verification.md has their conditions.
"""

from mmspec.verify.base import Chooser, Verifier
from mmspec.verify.block import block
from mmspec.verify.block import weigh as weigh_by_block
from mmspec.verify.coupled import coupled
from mmspec.verify.recursive import recursive
from mmspec.verify.rejection import weigh as weigh_by_rejection
from mmspec.verify.rule import Rule
from mmspec.verify.speculative import speculative
from mmspec.verify.typical import Typical
from mmspec.verify.weighing import Nodes, Odds, Weigh, Weighed

VERIFIERS: dict[str, Rule] = {
    "coupled": Rule(coupled, only_chooses=True),
    "greedy": Rule(coupled, only_chooses=True, is_greedy_only=True),
    "speculative": Rule(speculative, weigh_by_rejection, needs_q=True),
    "recursive": Rule(recursive, weigh_by_rejection, needs_q=True),
    "block": Rule(block, weigh_by_block, needs_q=True),
    "typical_lossy": Typical().rule,
}

__all__ = [
    "VERIFIERS",
    "Chooser",
    "Nodes",
    "Odds",
    "Rule",
    "Typical",
    "Verifier",
    "Weigh",
    "Weighed",
    "coupled",
]
