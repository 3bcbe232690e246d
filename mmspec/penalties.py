"""The two penalties that transformers has no class for, as transformers LogitsProcessors."""

from torch import Tensor
from transformers import LogitsProcessor

NO_TOKEN = -1  # in place of a token id: padding, which no penalty counts


class GeneratedTokenPenalty(LogitsProcessor):
    """Presence and frequency penalty: logits - presence * [count > 0] - frequency * count.

    Counts generated tokens only, the prompt's are free (as in OpenAI's API, which defines them).
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence = float(presence)  # a whole number may be more than a tensor's
        self.frequency = float(frequency)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` (batch, seq), padded with `NO_TOKEN` where rows differ in length; `scores`
        (batch, vocab); returns new scores."""
        generated = input_ids[:, self.prompt_length :]
        counts = scores.new_zeros(scores.shape)
        is_token = (generated != NO_TOKEN).to(counts.dtype)
        counts.scatter_add_(1, generated.clamp_min(0), is_token)
        return scores - self.presence * (counts > 0) - self.frequency * counts
