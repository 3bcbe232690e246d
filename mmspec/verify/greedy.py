"""Greedy verification: accept the children that are the argmax of the processed logits."""

from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify.base import Chooser
from mmspec.verify.coupled import coupled


def greedy(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """The coupled walk without noise. Raises ConfigError for a request that samples, whose
    distribution it would not keep."""
    if not row.is_greedy:
        raise ConfigError(
            "verifier=greedy got a request that samples; expected temperature=0. "
            "verifier=coupled is exact for both"
        )
    return coupled(tree, logits, row)
