"""The two penalties that transformers has no class for, as transformers LogitsProcessors."""

from torch import Tensor
from transformers import LogitsProcessor


class GeneratedTokenPenalty(LogitsProcessor):
    """Presence and frequency penalty: logits - presence * [count > 0] - frequency * count.

    Counts generated tokens only, the prompt's are free (as in OpenAI's API, which defines them).
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self.presence = presence
        self.frequency = frequency
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` (batch, seq), `scores` (batch, vocab); returns new scores."""
        generated = input_ids[:, self.prompt_length :]
        counts = scores.new_zeros(scores.shape)
        counts.scatter_add_(1, generated, counts.new_ones(generated.shape))
        return scores - self.presence * (counts > 0) - self.frequency * counts
