"""TargetEnds: the target's embedding and head, which most heads read with and speak through."""

import torch
from torch import Tensor, nn

from mmspec.target import Target
from mmspec.target.target import input_device


class TargetEnds:
    """Nothing of it is copied, and no gradient gets there."""

    def __init__(self, target: Target) -> None:
        model = target.model
        text = model.config.get_text_config(decoder=True)
        self.embedding: nn.Module = model.get_input_embeddings()
        self.head: nn.Module = model.get_output_embeddings()
        self.vocab_size = target.vocab_size
        self.hidden_size: int = text.hidden_size
        weight = next(self.head.parameters())
        self.device = input_device(self.head, weight)  # where features are read and logits made
        self.dtype = weight.dtype if weight.dtype.is_floating_point else target.dtype
        linears = target.attachments.linears
        self._quick = None if linears is None else linears.of(self.head)
        # What the target makes of logits; of a head's it may be something else.
        self.cap: float | None = getattr(text, "final_logit_softcapping", None)
        # Cohere multiplies by the one, Granite divides by the other.
        self.scale: float = getattr(text, "logit_scale", None) or 1.0
        self.scale /= getattr(text, "logits_scaling", None) or 1.0

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """(batch, seq) int64 -> (batch, seq, hidden), not scaled as some families do it."""
        weight = self.embedding.weight
        assert isinstance(weight, Tensor)
        if weight.is_meta or not weight.is_floating_point():  # kept elsewhere, or packed
            return self.embedding(ids)
        return embedded(ids.to(weight.device), weight)

    def logits(self, states: Tensor) -> Tensor:
        """(..., hidden) as after the final norm -> (..., vocab), as the target makes them; the
        gradient of the states is kept."""
        states = states.to(self.dtype)
        quick = None if torch.is_grad_enabled() else self._quick
        logits = self.head(states) if quick is None else quick(states)
        logits = logits[..., : self.vocab_size] * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def embedded(ids: Tensor, weight: Tensor) -> Tensor:
    """(batch, seq) int64 -> (batch, seq, hidden). An id beyond the embedding `weight`, as some
    families' placeholders are, reads as 0."""
    return nn.functional.embedding(ids.where(ids < weight.shape[0], 0), weight)
