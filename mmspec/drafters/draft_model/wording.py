"""The target's tokens and the draft model's, told from one to the other: `Texts` of any request,
`Wording` of one. Here where the ids mean the same to both; `alignment` has the other case."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmspec.calibration import Calibration
from mmspec.drafters.draft_model.vocabulary import SharedVocabulary
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.proposal import Proposal
from mmspec.errors import ConfigError
from mmspec.state import Prompt


class Wording(Protocol):
    """One request's text in the draft model's ids: keeps up with it as it grows."""

    ids: list[int]  # what was chosen after the prompt, in the draft model's ids

    def read(self, tokens: Sequence[int]) -> int:
        """Keeps up with `tokens`, the target's whole text; returns how many of `ids` stay what
        they were."""

    @property
    def can_continue(self) -> bool:
        """False while the text ends within a character."""

    def propose(self, growth: Growth, tokens: Sequence[int], calibration: Calibration) -> Proposal:
        """What the draft model grew, in the target's ids below node 0 = `tokens[-1]`.
        `calibration` has learnt of earlier proposals by their buckets."""


class Texts(Protocol):
    """One target's tokens for one draft model."""

    @property
    def shares_ids(self) -> bool:
        """Whether an id means the same to both."""

    def read_prompt(self, pieces: Sequence[Sequence[int] | str]) -> list[int]:
        """The draft model's ids of `pieces`, in order: target tokens, or text put in between."""

    def wording(self, prompt: Prompt) -> Wording:
        """For the text behind a prompt."""

    def crop(self, logits: Tensor) -> Tensor:
        """The draft model's logits (nodes, vocab) over the ids that it may propose."""


class SharedTexts:
    """The ids mean the same to both models, as far as both have them."""

    shares_ids = True

    def __init__(
        self, vocabulary: SharedVocabulary, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        """`tokenizer` of either, for texts that are put into prompts."""
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    def read_prompt(self, pieces: Sequence[Sequence[int] | str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, str):
                if self._tokenizer is None:
                    raise ConfigError("captions need a tokenizer, and neither model has one")
                piece = self._tokenizer(piece, add_special_tokens=False).input_ids
            ids += self._vocabulary.read(piece)
        return ids or [self._vocabulary.stand_in]

    def wording(self, prompt: Prompt) -> "SharedWording":
        return SharedWording(self._vocabulary, prompt.num_tokens)

    def crop(self, logits: Tensor) -> Tensor:
        return self._vocabulary.crop(logits)


class SharedWording:
    """The ids mean the same to both models."""

    can_continue = True

    def __init__(self, vocabulary: SharedVocabulary, prompt_length: int) -> None:
        self.ids: list[int] = []
        self._vocabulary = vocabulary
        self._prompt_length = prompt_length

    def read(self, tokens: Sequence[int]) -> int:
        before = len(self.ids)
        self.ids += self._vocabulary.read(tokens[self._prompt_length + before :])
        return before

    def propose(self, growth: Growth, tokens: Sequence[int], calibration: Calibration) -> Proposal:
        own = growth.proposal  # node 0 may be one that the draft model cannot read
        return replace(own, tree=replace(own.tree, tokens=(tokens[-1], *own.tree.tokens[1:])))
