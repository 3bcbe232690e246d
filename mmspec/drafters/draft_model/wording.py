"""A request's text in the draft model's ids, and its trees in the target's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from mmspec.calibration import Calibration
from mmspec.drafters.draft_model.vocabulary import SharedVocabulary
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.proposal import Proposal


class Wording(Protocol):
    """One request's: keeps up with the text as it grows."""

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


class SharedWording:
    """The ids mean the same to both models."""

    def __init__(self, vocabulary: SharedVocabulary, prompt_length: int) -> None:
        self.ids: list[int] = []
        self._vocabulary = vocabulary
        self._prompt_length = prompt_length

    def read(self, tokens: Sequence[int]) -> int:
        before = len(self.ids)
        self.ids += self._vocabulary.read(tokens[self._prompt_length + before :])
        return before

    @property
    def can_continue(self) -> bool:
        return True

    def propose(self, growth: Growth, tokens: Sequence[int], calibration: Calibration) -> Proposal:
        tree = growth.tree
        return Proposal(replace(tree, tokens=(tokens[-1], *tree.tokens[1:])), tuple(growth.buckets))
