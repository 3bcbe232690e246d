"""Limits: how much a source looks for."""

from dataclasses import dataclass

from mmspec.errors import ConfigError
from mmspec.retrieval.continuations import MAX_PLACES
from mmspec.retrieval.suffix_sort import DEPTH


@dataclass(frozen=True)
class Limits:
    """Bounds of one look-up. Raises ConfigError for values that make no sense."""

    max_places: int = 16  # of each source; of all together the 32 that say most are kept
    min_match: int = 2  # tokens that must agree before anything is copied
    max_match: int = 32
    drafter: str = "retrieval"  # whose settings they are

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_places", self.max_places, 1, MAX_PLACES),
            ("max_match", self.max_match, 1, DEPTH),
            ("min_match", self.min_match, 1, self.max_match),
        ):
            if not low <= value <= high:
                raise ConfigError(
                    f"drafter.{self.drafter}.{name}={value}: expected {low} .. {high}"
                    + (" (max_match)" if name == "min_match" else "")
                )
