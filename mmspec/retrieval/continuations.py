"""Continuation: what followed at one place, and how much that says about this one."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from math import exp
from typing import NamedTuple

MAX_PLACES = 32  # gathering more costs more than they add
# What a place of each source is worth beside one of the request's own text, for equal matches.
SOURCE_WEIGHTS: Mapping[str, float] = {
    "online": 1.0,  # this request's prompt, passages and output
    "generated": 0.7,  # what was generated for others
    "suffix": 0.5,  # a corpus
    "dense": 0.5,  # a corpus, by hidden states
}
_DENSE_MATCH = 8  # tokens: a neighbour at distance 0 is worth a match of so many
_DENSE_SCALE = 0.25  # distance at which that has fallen to 1/e


def before_separator(tokens: Sequence[int]) -> list[int]:
    """The tokens before the first separator (a negative one)."""
    if min(tokens, default=0) >= 0:
        return list(tokens)
    return list(takewhile(lambda token: token >= 0, tokens))


class Continuation(NamedTuple):
    """Tokens that followed a match of `match_length` tokens somewhere."""

    tokens: list[int]
    match_length: int
    source: str = "online"
    distance: float | None = None  # of hidden states, squared, 0 .. 4; None: matched by tokens
    origin: int = -1  # where its source found it, as the source counts; -1: it does not say

    def weight(self) -> float:
        """(match length)^2: a longer match knows more of the context, and several shorter ones
        that agree still count. Neighbours weigh exp(-distance / scale) (kNN-LM, arXiv 1911.00172,
        eq. 2), or their matching tokens, whichever is more."""
        weight = float(self.match_length**2)
        if self.distance is not None:
            near = exp(-self.distance / _DENSE_SCALE)
            weight = max(weight, _DENSE_MATCH**2 * near)
        return SOURCE_WEIGHTS[self.source] * weight
