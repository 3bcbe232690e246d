"""Where the texts that a pipeline retrieved go: into the prompt, or to the drafter alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from mmspec.errors import InputError
from mmspec.requests import Messages

Placement = Literal["auto", "prompt", "drafter"]
"""Of the passages of a call: "prompt" writes them into the prompt by mmspec's template and lets the
drafter copy from them; "drafter" does the latter alone, for pipelines whose own prompt builder has
written them, or that give the drafter more than the model is shown (the whole document of a
chunk). "auto" takes "drafter" for those whose words stand in the messages already, "prompt" for
the others."""


def with_passages(
    options: Mapping[str, object], prompt: str | Messages, *, placement: Placement
) -> dict[str, object]:
    """A request's options with its `passages`, and those of `draft_texts`, put where `placement`
    says; blank ones are left out. Raises InputError."""
    placed = dict(options)
    passages = placed.pop("passages", None)
    placement = cast(Placement, placed.pop("placement", placement))
    if placement not in get_args(Placement):
        raise InputError(f"placement={placement!r}: expected one of {get_args(Placement)}")
    if passages is None:
        return placed
    texts = _texts(passages)
    shown = _words(_text(prompt)) if placement == "auto" else ""
    beside = [
        text
        for text in texts
        if placement == "drafter" or (placement == "auto" and _words(text) in shown)
    ]
    written = [text for text in texts if text not in beside]
    if written:
        placed["passages"] = written
    if beside:
        placed["draft_texts"] = [*cast(Sequence[str], placed.get("draft_texts", ())), *beside]
    return placed


def _texts(passages: object) -> list[str]:
    if isinstance(passages, str) or not isinstance(passages, Sequence):
        raise InputError(f"passages={passages!r:.60}: expected a list of texts")
    for text in passages:
        if not isinstance(text, str):
            raise InputError(
                f"passages: got a {type(text).__name__}; expected texts, such as "
                "document.page_content of a LangChain document"
            )
    return [text for text in passages if text.strip()]


def _text(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    parts: list[str] = []
    for message in prompt:
        content: Any = message.get("content")
        parts += [content] if isinstance(content, str) else [p.get("text", "") for p in content]
    return " ".join(parts)


def _words(text: str) -> str:
    """With single blanks: a prompt builder may have wrapped or joined its lines."""
    return " ".join(text.split())
