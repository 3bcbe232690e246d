"""DraftGuide: what a drafter may follow of a request's sampling."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from mmspec.noise import TARGET_STREAM, Place, gumbel_at

WARPERS = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)


@runtime_checkable
class ForcingProcessor(Protocol):
    """A logits processor that knows tokens to come: what it forbids leaves one way to go on, or it
    has a good guess. The engine drafts them; where they are wrong they cost, and change no text."""

    def forced_tokens(self, ids: Sequence[int]) -> Sequence[int]:
        """What comes after `ids`, the prompt's and the chosen tokens, as far as it is known. Asked
        at any step, or at none: it must not change what the processor says when it is called."""


@dataclass(frozen=True)
class DraftGuide:
    """The request's sampling, as far as a drafter may follow it: its noise, and those of its
    processors that look at the scores alone, so that any branch of a tree can be warped."""

    is_greedy: bool
    seed: int
    sample: int
    prompt_length: int
    warpers: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    forcing: tuple[ForcingProcessor, ...] = ()  # processors that know tokens to come
    max_length: int = sys.maxsize  # tokens of the whole text, prompt included

    def warp(self, logits: Tensor) -> Tensor:
        """(nodes, vocab) logits of a drafter, float32, warped as the target's will be."""
        nothing = torch.empty(logits.shape[0], 0, dtype=torch.long, device=logits.device)
        return self.warpers(nothing, logits.float())

    def depth_below(self, index: int) -> int:
        """Levels of a tree below the token at `index` of the whole text that the text has room for,
        at least one. Behind them stands a token of the target's own."""
        return max(self.max_length - index - 2, 1)

    def place(self, index: int, *, stream: int = TARGET_STREAM) -> Place:
        """Of the token at `index` of the whole text, prompt included."""
        return Place(self.seed, self.sample, index - self.prompt_length, stream)

    def noise_at(
        self, indices: Sequence[int], vocab_size: int, *, device: torch.device | str = "cpu"
    ) -> Tensor:
        """(indices, vocab_size), to be read only: the Gumbel noise with which the target will
        choose the tokens there. Zeros if greedy."""
        if self.is_greedy:
            return torch.zeros(1, 1, device=device).expand(len(indices), vocab_size)
        return gumbel_at([self.place(index) for index in indices], vocab_size, device=device)
