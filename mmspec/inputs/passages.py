"""Passages: what a retrieval step found, or a page's text layer -> the prompt, and drafts.

A passage is data, whoever wrote it: control and media tokens in it are never parsed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import jinja2
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmspec.errors import InputError
from mmspec.inputs.messages import check_text
from mmspec.inputs.template import TEMPLATE_ERRORS

DEFAULT_TEMPLATE = """\
{% for passage in passages %}
[{{ loop.index }}]{{ " " + passage.source if passage.source }}
{{ passage.text }}

{% endfor %}
{{ question }}"""
_NAMES = {"passages", "question"}


@dataclass(frozen=True)
class Passage:
    """A text that the answer may quote.

    With `in_prompt=False` the target never reads it, it is drafted from alone: the text layer, or
    an OCR tool's reading, of a page that the target sees as an image.
    """

    text: str
    id: str = ""
    source: str = ""  # shown above the text by the default template
    in_prompt: bool = True


Passages = str | Passage | Sequence[str | Passage]


def passage_list(given: Passages) -> tuple[Passage, ...]:
    """One or several passages, empty ones left out. Raises InputError for what is none."""
    several = [given] if isinstance(given, str | Passage) else given
    if not isinstance(several, Sequence):
        raise InputError(
            f"got passages of type {type(given).__name__}; expected texts or mmspec.Passage"
        )
    for one in several:
        text = one.text if isinstance(one, Passage) else one
        if not isinstance(text, str):
            raise InputError(
                f"got a passage {one!r:.80}; expected a text, or mmspec.Passage(text, source=...)"
            )
        check_text(text)
    passages = (one if isinstance(one, Passage) else Passage(one) for one in several)
    return tuple(passage for passage in passages if passage.text.strip())


@dataclass(frozen=True)
class PassageBlock:
    """The passages of one prompt, as its template writes them round the question."""

    passages: tuple[Passage, ...]
    template: jinja2.Template

    @staticmethod
    def of(passages: Sequence[Passage], template: str | None = None) -> "PassageBlock | None":
        """None where no passage goes into the prompt. Raises InputError for a template that is no
        Jinja, or that leaves out the passages or the question."""
        shown = tuple(passage for passage in passages if passage.in_prompt)
        source = DEFAULT_TEMPLATE if template is None else template
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        try:
            found = find_undeclared_variables(environment.parse(source))
            compiled = environment.from_string(source)
        except TEMPLATE_ERRORS as error:
            raise InputError(f"passage_template is no Jinja template: {error}") from error
        if found != _NAMES:
            raise InputError(
                f"passage_template uses {sorted(found)}; expected both of passages (each with "
                ".text, .id, .source) and question, and no other variable"
            )
        return PassageBlock(shown, compiled) if shown else None

    def write(self, question: str, change: Callable[[str], str]) -> str:
        """The passages, with `change` applied to all that they say, and the question."""
        changed = [
            replace(one, text=change(one.text), id=change(one.id), source=change(one.source))
            for one in self.passages
        ]
        try:
            return self.template.render(passages=changed, question=question)
        except TEMPLATE_ERRORS as error:
            raise InputError(f"passage_template does not take these passages: {error}") from error

    def put_into(
        self, messages: Sequence[Mapping[str, object]], change: Callable[[str], str]
    ) -> tuple[dict[str, object], ...]:
        """The messages, the last user message's last text with the passages round it. Raises
        InputError where no message is the user's."""
        places = [n for n, message in enumerate(messages) if message["role"] == "user"]
        if not places:
            raise InputError(
                f"got passages and messages of {[message['role'] for message in messages]}; "
                "expected one of the user, into which they go"
            )
        message = messages[places[-1]]
        parts = list(cast(list[dict[str, str]], message["content"]))
        texts = [n for n, part in enumerate(parts) if part["type"] == "text"]
        if not texts:
            texts = [len(parts)]
            parts.append({"type": "text", "text": ""})
        written = self.write(parts[texts[-1]]["text"], change)
        parts[texts[-1]] = {**parts[texts[-1]], "text": written}
        filled = [dict(one) for one in messages]
        filled[places[-1]]["content"] = parts
        return tuple(filled)
