"""Vocabularies are compared by what their ids mean, not by their sizes."""

import copy

import pytest
import torch
from draft_models import byte_level, letters, metaspace, shuffled, stranger

from mmspec.drafters.draft_model.vocabulary import SharedVocabulary, shared_vocabulary
from mmspec.drafters.draft_model.wording import SharedTexts
from mmspec.errors import ConfigError


def compared(target: object, draft: object, *, sizes: tuple[int, int]) -> SharedVocabulary | None:
    return shared_vocabulary(
        target,  # type: ignore[arg-type]
        draft,  # type: ignore[arg-type]
        target_size=sizes[0],
        draft_size=sizes[1],
        readable=sizes[1],
    )


def test_the_same_tokenizer_under_padded_sizes_is_shared() -> None:
    for sizes in ((112, 128), (128, 112)):
        shared = compared(letters(), letters(), sizes=sizes)
        assert shared is not None and shared.size == 112
        assert shared.crop(torch.zeros(2, sizes[1])).shape == (2, 112)
        assert shared.read([5, 111, 127]) == [5, 111, 127 if sizes[1] == 128 else 0]


def test_ids_that_mean_something_else_are_neither_read_nor_proposed() -> None:
    """As where one of two models of a family has its own added tokens behind the common ones."""
    target, draft = copy.deepcopy(letters(110)), copy.deepcopy(letters(110))
    target.add_special_tokens({"additional_special_tokens": ["<|image|>", "<|end|>"]})
    draft.add_special_tokens({"additional_special_tokens": ["<|tool|>", "<|end|>"]})
    shared = compared(target, draft, sizes=(112, 112))
    assert shared is not None
    assert shared.read([109, 110, 111]) == [109, draft.pad_token_id, 111]
    cropped = shared.crop(torch.zeros(1, 112))[0]
    assert cropped[110] == -torch.inf and cropped[[3, 109, 111]].eq(0).all()


def test_another_tokenizer_is_not_shared() -> None:
    assert compared(letters(), byte_level(), sizes=(112, 319)) is None
    _, other = shuffled(stranger(), letters())
    assert compared(letters(), other, sizes=(112, 112)) is None


def test_without_a_tokenizer_the_ids_are_taken_to_mean_the_same() -> None:
    shared = compared(None, byte_level(), sizes=(112, 319))
    assert shared is not None and shared.size == 112


def test_a_caption_needs_a_tokenizer() -> None:
    shared, tokenizer = SharedVocabulary(400, 400, frozenset(), 0), metaspace()
    assert SharedTexts(shared, tokenizer).read_prompt([[5], "ab", [6]]) == [
        5, *tokenizer("ab").input_ids[1:], 6,
    ], "no text begins in the middle of one"  # fmt: skip
    assert SharedTexts(shared, None).read_prompt([[], []]) == [0], "a prompt has a token at least"
    with pytest.raises(ConfigError, match="captions need a tokenizer"):
        SharedTexts(shared, None).read_prompt(["ab"])
