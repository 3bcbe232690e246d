"""Ragged batches for a target that drafts, or is drafted for, in the engine."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from families import FAMILIES, prompt_inputs
from matrix import SAMPLINGS, model_of

from mmspec.engine import Engine
from mmspec.requests import Request
from mmspec.target import Target
from mmspec.target.probe import probe


@cache
def target_of(family: str) -> Target:
    return probe(model_of(family, "float64"))[0]


def requests_of(
    family: str = "llama",
    sampling: str | Mapping[str, Any] = "greedy",
    layouts: Sequence[str] = ("text",) * 3,
    *,
    lengths: Sequence[int] = (40, 17, 29),
    new: Sequence[int] = (24, 20, 16),
    first_seed: int = 0,
) -> list[Request]:
    """A ragged batch: of each row its layout, tokens of text and new ones."""
    options = SAMPLINGS[sampling] if isinstance(sampling, str) else sampling
    return [
        Request(
            prompt_inputs(FAMILIES[family], layout, num_text_tokens=length, seed=row),  # type: ignore[arg-type]
            max_new_tokens=most,
            seed=first_seed + row,
            **options,
        )
        for row, (layout, length, most) in enumerate(zip(layouts, lengths, new, strict=False))
    ]


def engine_of(family: str, drafter: Any, *, max_nodes: int = 16, **options: Any) -> Engine:
    """It drafts as much as it can."""
    return Engine(
        target_of(family),
        None,
        [drafter],
        **{"controller": "fixed", "max_nodes": max_nodes, "max_rows": 3, **options},
    )
