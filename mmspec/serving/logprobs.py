"""Log-probabilities as OpenAI's two APIs write them."""

from collections.abc import Sequence
from typing import Any

from mmspec.logprobs import Candidate, TokenLogprobs

_LEAST = -9999.0  # JSON has no infinity


def of_chat(places: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {
        "content": [
            {**_token(place.chosen), "top_logprobs": [_token(one) for one in place.top]}
            for place in places
        ],
        "refusal": None,
    }


def of_completion(places: Sequence[TokenLogprobs], offset: int = 0) -> dict[str, Any]:
    """`offset`: characters of the text before these tokens."""
    offsets = []
    for place in places:
        offsets.append(offset)
        offset += len(place.chosen.text or "")
    return {
        "tokens": [place.chosen.text or "" for place in places],
        "token_logprobs": [_value(place.chosen) for place in places],
        "top_logprobs": [{one.text or "": _value(one) for one in place.top} for place in places],
        "text_offset": offsets,
    }


def told_places(
    places: Sequence[TokenLogprobs], finish_reason: str | None
) -> Sequence[TokenLogprobs]:
    """Without the token that ended the text, which is no part of it."""
    return places[:-1] if finish_reason == "eos" else places


def _token(one: Candidate) -> dict[str, Any]:
    text = one.text or ""
    # A part of a character has no bytes that its text would tell.
    found = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _value(one), "bytes": found}


def _value(one: Candidate) -> float:
    return max(one.logprob, _LEAST)
