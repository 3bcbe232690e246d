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
_NEAR_MATCH = 8.0  # tokens: a neighbour at distance 0 is worth a match of so many
_NEAR_SCALE = 0.5  # distance at which that has fallen to 1/e


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

    @property
    def worth(self) -> float:
        """Tokens that its match counts as: those that agree, or what its neighbour's nearness is
        worth, whichever is more."""
        if self.distance is None:
            return float(self.match_length)
        return max(self.match_length, _NEAR_MATCH * exp(-self.distance / _NEAR_SCALE))

    def weight(self) -> float:
        """worth^2: a longer match knows more of the context, and several shorter ones that agree
        still count. Neighbours so weigh exp(-distance / scale) (kNN-LM, arXiv 1911.00172, eq. 2).
        """
        return SOURCE_WEIGHTS[self.source] * self.worth**2
