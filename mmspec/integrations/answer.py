"""What an answer's metadata says, the same in every framework: plain values, ready for JSON."""

import json
from contextlib import suppress
from typing import Literal

from mmspec.engine import Engine
from mmspec.reading import Answer
from mmspec.requests import Result
from mmspec.row import FinishReason

FinishWord = Literal["stop", "length", "tool_calls"]


def finish_word(reason: FinishReason | None, *, calls_tools: bool = False) -> FinishWord:
    """Why the answer ended, in the words of OpenAI's API."""
    if calls_tools:
        return "tool_calls"
    return "length" if reason == "length" else "stop"


def broken_form(text: str, reason: FinishWord) -> str | None:
    """Why an answer of a form is no value of it: its end is missing. None where it is whole."""
    with suppress(ValueError):
        value = json.loads(text)
        if reason != "length" or isinstance(value, dict | list | str):  # a number may go on
            return None
    return (
        f"the answer was cut off before its form ended: {text[-60:]!r}; ask for more max_tokens, "
        "and for no stop string that stands in it"
    )


def usage(result: Result) -> dict[str, int]:
    """Tokens of the prompt, placeholders of media included, and of the answer."""
    prompt = result.stats.prompt_tokens
    completion = sum(sample.stats.new_tokens for sample in result.samples)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def speculation(result: Result) -> dict[str, object]:
    """What the drafters did for one answer. `share` is a drafter's part of the answer's tokens."""
    stats = result.stats
    tokens = max(stats.new_tokens, 1)
    return {
        "seed": result.seed,
        "steps": stats.steps,
        "tokens_per_step": stats.tokens_per_step,
        "tokens_per_second": stats.tokens_per_second,
        "accepted_tokens": stats.accepted_tokens,
        "reused_tokens": stats.reused_tokens,
        "drafters": {
            name: {
                "proposed": count.proposed,
                "accepted": count.accepted,
                "share": count.accepted / tokens,
            }
            for name, count in stats.by_drafter.items()
        },
        "is_lossless": stats.is_lossless,
    }


def metadata(answer: Answer, *, model: str) -> dict[str, object]:
    """All of it."""
    result = answer.result
    figures: dict[str, object] = {**usage(result)}
    if answer.reasoning_tokens:
        figures["completion_tokens_details"] = {"reasoning_tokens": answer.reasoning_tokens}
    return {
        "model": model,
        "finish_reason": finish_word(result.finish_reason, calls_tools=bool(answer.calls)),
        "usage": figures,
        "mmspec": speculation(result),
    }


def model_name(engine: Engine) -> str:
    """What the target was loaded from, or its class where that is not known."""
    model = engine.target.model
    return str(getattr(model, "name_or_path", "") or type(model).__name__)
