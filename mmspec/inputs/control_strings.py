"""Which strings count as control: what the model or its processor takes as structure, not text."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase, ProcessorMixin

# Added tokens that are not flagged special but are written by templates as structure are control,
# save those that models and users write as ordinary content.
_CONTENT_LIKE = re.compile(
    r"</?\|?(think|thinking|thought|reasoning|answer|tool_calls?|tool_response|tools?|function\w*)"
    r"\|?>"
)
_BAR_STYLE = re.compile(r"<[|｜].*[|｜]>|<\|.*|.*\|>")
_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)


def control_strings(
    tokenizer: PreTrainedTokenizerBase,
    *,
    processor: ProcessorMixin | None = None,
    template: str = "",
) -> frozenset[str]:
    """The strings that user text must not be able to write.

    Every token flagged special; every media token or tag that the processor names; of the other
    added tokens those in the style <|...|>, and those in brackets that the chat template itself
    writes. Content-like tokens (<think>, <tool_call>, <loc0001>, HTML tags) are text unless
    flagged special. Single characters and blanks are never control: some models
    pad with "!".
    """
    strings = set(tokenizer.all_special_tokens)
    for added in tokenizer.added_tokens_decoder.values():
        text = added.content
        if _CONTENT_LIKE.fullmatch(text) and not added.special:
            continue
        is_template = _BRACKETED.fullmatch(text) is not None and text in template
        if added.special or is_template or _BAR_STYLE.fullmatch(text):
            strings.add(text)
    if processor is not None:
        strings.update(_named(processor, tokenizer))
    return frozenset(text for text in strings if len(text.strip()) > 1)


def _named(processor: ProcessorMixin, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    """Strings and ids under names such as image_token, global_image_tag, row_col_ids."""
    for name, value in list(vars(processor).items()):
        if isinstance(value, str) and name.endswith(("_token", "_tag")):
            yield value
        elif name.endswith(("_id", "_ids")):
            ids = value if isinstance(value, list | tuple) else [value]
            for one in ids:
                if type(one) is int and 0 <= one < len(tokenizer):
                    text = tokenizer.convert_ids_to_tokens(one)
                    if isinstance(text, str) and _BRACKETED.fullmatch(text):
                        yield text
