"""Ragged batches for a target that drafts, or is drafted for, in the engine."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from families import FAMILIES, prompt_inputs
from matrix import model_of

from mmspec.requests import Request
from mmspec.target import Target
from mmspec.target.probe import probe


@cache
def target_of(family: str) -> Target:
    return probe(model_of(family, "float64"))[0]


def requests_of(family: str, sampling: Mapping[str, Any], layouts: Sequence[str]) -> list[Request]:
    """A ragged batch."""
    return [
        Request(
            prompt_inputs(FAMILIES[family], layout, num_text_tokens=length, seed=row),  # type: ignore[arg-type]
            max_new_tokens=24 - 4 * row,
            seed=row,
            **sampling,
        )
        for row, (layout, length) in enumerate(zip(layouts, (40, 17, 29), strict=True))
    ]
