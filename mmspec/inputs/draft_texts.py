"""Draft texts: passages as tokens, the way an answer that quotes them would hold them."""

from collections.abc import Iterable, Sequence, Set

from transformers import PreTrainedTokenizerBase

from mmspec.inputs.passages import Passage
from mmspec.inputs.text_tokens import SEPARATOR

# The same words have other tokens at a line's start and behind a space: only the first ones.
_SEAMS = ("\n", " ")
_HEAD_TOKENS = 24


def draft_texts(
    passages: Iterable[Passage], tokenizer: PreTrainedTokenizerBase, control: Set[int]
) -> tuple[tuple[int, ...], ...]:
    """Token lists to copy from, -1 in place of the `control` ids that a text spells out.

    A passage that is in the prompt is there already: of it there are the beginnings alone.
    """
    found: dict[tuple[int, ...], None] = {}
    for passage in passages:
        text = passage.text.strip()
        for number, seam in enumerate(_SEAMS):
            tokens = answer_tokens(seam + text, tokenizer, control)
            is_whole = number == 0 and not passage.in_prompt
            found[tokens if is_whole else tokens[:_HEAD_TOKENS]] = None
    return tuple(found)


def answer_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, control: Set[int]
) -> tuple[int, ...]:
    """The tokens that an answer of this text would have, -1 in place of the `control` ids that it
    spells out."""
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(SEPARATOR if token in control else token for token in ids)
