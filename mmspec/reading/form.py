"""The form in which one model answers."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplate,
    load_response_template,
)

from mmspec.reading.forms import BEGINNINGS, KNOWN

logger = logging.getLogger(__name__)
_CALLS = "tool_calls"


class Form(NamedTuple):
    template: ResponseTemplate
    shows_special: bool = False  # whether the text has to be decoded with its special tokens
    thought: tuple[str, str] | None = None  # what stands before its reasoning, and behind it

    def beginning(self, prompt: str) -> str:
        """What of the answer the prompt has begun: a template may open the reasoning."""
        ends = [match.end() for match in self.template.start_anchor_re.finditer(prompt)]
        return prompt[ends[-1] :] if ends else ""


def form_of(
    tokenizer: PreTrainedTokenizerBase | None, chat_template: str = "", *, has_tools: bool
) -> Form:
    """By the tokenizer's own response template, or by what its chat template shows. Without tools
    what calls them is text."""
    own = getattr(tokenizer, "response_template", None)
    if own is not None:
        try:
            return Form(_loaded(own, has_tools=has_tools), shows_special=True)
        except (ValueError, TypeError) as error:
            logger.warning("the tokenizer's response_template is left aside: %s", error)
    found = [known for known in KNOWN if known.mark in chat_template]
    if not has_tools:
        found = [known for known in found if not all(map(is_call, known.fields))]
    fields = {name: spec for known in reversed(found) for name, spec in known.fields.items()}
    marks = {token for known in found for token in known.tokens}
    special = marks.intersection(special_strings(tokenizer)) if tokenizer is not None else ()
    spec = {"start_anchor_pattern": BEGINNINGS, "fields": fields}
    thought = next((known.thought for known in found if known.thought), None)
    return Form(_loaded(spec, has_tools=has_tools), bool(special), thought)


def is_call(field: str | None) -> bool:
    return field is not None and field.startswith(_CALLS)


def special_strings(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Of all tokens that a text leaves out."""
    added = tokenizer.added_tokens_decoder.values()
    found = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    return tuple(sorted(found))


def _loaded(spec: object, *, has_tools: bool) -> ResponseTemplate:
    """Raises ValueError, TypeError for what is no response template."""
    template = load_response_template(spec)
    if not has_tools:
        for name in filter(is_call, list(template.fields)):
            del template.fields[name]
    return template
