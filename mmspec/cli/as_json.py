"""A Result as plain values for json.dumps."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from mmspec.cli.pairs import Pairs

if TYPE_CHECKING:
    from mmspec.requests import Result
    from mmspec.stats import Stats
    from mmspec.stream import Piece

JsonObject = dict[str, object]


def result_values(result: "Result") -> JsonObject:
    """The answer, who drafted which part of it, and its figures."""
    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "pieces": piece_values(result.pieces),
        "stats": stats_values(result.stats),
    }


def piece_values(pieces: Sequence["Piece"]) -> list[JsonObject]:
    """Neighbours of one drafter joined; null is the target itself."""
    return [
        {"text": "".join(piece.text for piece in group), "drafter": drafter}
        for drafter, group in groupby(pieces, lambda piece: piece.drafter)
    ]


def stats_values(stats: "Stats") -> JsonObject:
    drafters = stats.by_drafter.items()
    return {
        "prompt_tokens": stats.prompt_tokens,
        "new_tokens": stats.new_tokens,
        "steps": stats.steps,
        "tokens_per_step": stats.tokens_per_step,
        "tokens_per_second": stats.tokens_per_second,
        "accepted_lengths": {str(length): n for length, n in stats.accepted_lengths.items()},
        "by_drafter": {name: {**asdict(n), "acceptance": n.acceptance} for name, n in drafters},
        "times": asdict(stats.times),
        "controller": {**asdict(stats.choices), "explanation": stats.explanation},
        "is_lossless": stats.is_lossless,
        "reused_tokens": stats.reused_tokens,
        "encoded_media": stats.encoded_media,
        "reused_media": stats.reused_media,
    }


def comparison_values(runs: Pairs) -> JsonObject:
    """Plain decoding beside it; `ratio` is the fastest runs', `ratios` are the pairs' own."""
    return {
        "identical": runs.is_identical,
        "ratio": runs.ratio,
        "ratios": [pair.ratio for pair in runs.pairs],
        "explained": runs.is_explained,
        "runs": len(runs.pairs),
        "plain": result_values(runs.differing.plain),
    }
