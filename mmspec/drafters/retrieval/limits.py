"""Limits: how much the sources look for, and what of it is proposed."""

from dataclasses import dataclass
from functools import partial

from mmspec.errors import check_setting
from mmspec.retrieval.continuations import MAX_PLACES
from mmspec.retrieval.suffix_sort import DEPTH


@dataclass(frozen=True)
class Limits:
    """Bounds of one look-up and of its tree. Raises ConfigError for values that make no sense."""

    max_places: int = 16  # of each source; of all together the 32 that say most are kept
    min_match: int = 2  # tokens that must agree before anything is copied
    max_match: int = 32
    max_depth: int = 48
    min_confidence: float = 0.15  # that a node's whole path is accepted
    drafter: str = "retrieval"  # whose settings they are

    def __post_init__(self) -> None:
        check, most = partial(check_setting, f"drafter.{self.drafter}"), self.max_match
        places, match, least = self.max_places, self.min_match, self.min_confidence
        check("max_places", 1 <= places <= MAX_PLACES, places, f"1 .. {MAX_PLACES}")
        check("max_match", 1 <= most <= DEPTH, most, f"1 .. {DEPTH}")
        check("min_match", 1 <= match <= most, match, f"1 .. {most} (max_match)")
        check("max_depth", self.max_depth >= 1, self.max_depth, "at least 1")
        check("min_confidence", 0 <= least <= 1, least, "in [0, 1]")
