"""Verification rules: which of a tree's nodes the target accepts. One rule, one file.

`coupled` and `greedy` give the seed's own text, whatever the tree. The other lossless ones keep the
target's distribution, for trees that were drawn. docs/verification.md has their conditions.
"""

from mmspec.verify.base import Chooser, Rule, Verifier
from mmspec.verify.block import block
from mmspec.verify.coupled import coupled
from mmspec.verify.greedy import greedy
from mmspec.verify.recursive import recursive
from mmspec.verify.speculative import speculative
from mmspec.verify.typical import Typical

VERIFIERS: dict[str, Rule] = {
    "coupled": Rule(coupled, only_chooses=True),
    "greedy": Rule(greedy, only_chooses=True),
    "speculative": Rule(speculative, needs_q=True),
    "recursive": Rule(recursive, needs_q=True),
    "block": Rule(block, needs_q=True),
    "typical_lossy": Rule(Typical(), is_lossless=False),
}

__all__ = [
    "VERIFIERS",
    "Chooser",
    "Rule",
    "Typical",
    "Verifier",
    "block",
    "coupled",
    "greedy",
    "recursive",
    "speculative",
]
