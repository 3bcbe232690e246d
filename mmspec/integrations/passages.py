"""Where the texts that a pipeline retrieved go: into the prompt, or to the drafter alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from mmspec.errors import InputError
from mmspec.inputs.passages import Passages, passage_list
from mmspec.requests import Messages

Placement = Literal["auto", "prompt", "drafter"]
"""Of the passages of a call. "prompt" writes them into the prompt, by mmspec's own template or
`passage_template`, and lets the drafter copy from them. "drafter" does the latter alone: for
pipelines whose own prompt builder has written them already, or that give the drafter more than the
model is shown (the whole document of a chunk, the text layer of a page that is shown as an image).
"auto" takes "drafter" for a passage whose words stand in the messages already, "prompt" for the
others."""


def with_passages(
    options: Mapping[str, object], prompt: str | Messages, *, placement: Placement
) -> dict[str, object]:
    """A request's options, its `passages` put where `placement` says. A passage that says itself
    that it is not for the prompt stays out of it. Raises InputError."""
    placed = dict(options)
    where = placed.pop("placement", placement)
    if where not in get_args(Placement):
        raise InputError(f"placement={where!r}: expected one of {get_args(Placement)}")
    passages = passage_list(cast(Passages, placed.pop("passages", None) or ()))
    if not passages:
        return placed
    shown = _words(_text(prompt)) if where == "auto" else ""
    placed["passages"] = [
        replace(one, in_prompt=False)
        if where == "drafter" or (where == "auto" and _words(one.text) in shown)
        else one
        for one in passages
    ]
    return placed


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
