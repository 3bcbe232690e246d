"""What drafters were asked, and what they said."""

from typing import NamedTuple

from mmspec.drafters.base import DraftSession
from mmspec.tree import TokenTree


class Asked(NamedTuple):
    """One drafter, for one row."""

    drafter: str
    session: DraftSession
    text: list[int]
    budget: int
    tree: TokenTree
