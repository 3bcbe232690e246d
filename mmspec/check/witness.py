"""Witness: what the target's logits were at the place where two texts part."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mmspec.devices import with_float64


class Witness(LogitsProcessor):
    """Keeps the scores (vocab,) float32 of the first token that is not the `expected` one, or of
    the last token. Changes nothing.

    It stands where transformers puts a user's processors: after penalties, before warpers.
    """

    def __init__(self, prompt_length: int, expected: Sequence[int]) -> None:
        self._prompt_length = prompt_length
        self._expected = tuple(expected)
        self._has_parted = False
        self.position = -1  # index in the generated text
        self.input_ids: Tensor | None = None  # (1, seq), the prompt and the tokens before it
        self.scores: Tensor | None = None  # (vocab,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = input_ids[0, self._prompt_length :].tolist()
        self._has_parted |= tuple(chosen) != self._expected[: len(chosen)]
        if not self._has_parted:
            self.position = len(chosen)
            place = with_float64(scores.device)  # where the engine's own are, and noise is made
            self.input_ids = input_ids.to(place, copy=True)
            self.scores = scores[0].to(place, torch.float32, copy=True)
        return scores
