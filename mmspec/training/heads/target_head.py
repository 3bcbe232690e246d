"""The target's own head, which trained heads begin with."""

import torch
from torch import Tensor, nn

from mmspec.errors import ModelError
from mmspec.target import Target
from mmspec.target.target import input_device


def head_weight(target: Target) -> Tensor:
    """(vocab, hidden) in float32: what the target's head multiplies its last states by, also where
    it is packed in few bits. Raises ModelError for a target without such a head."""
    head = target.model.get_output_embeddings()
    size = getattr(head, "in_features", None)
    if head is None or not isinstance(size, int):
        raise ModelError(
            f"{type(target.model).__name__} has no linear head over its vocabulary; expected one, "
            "from which Medusa's heads begin"
        )
    weight = getattr(head, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.is_floating_point() and weight.ndim == 2:
        return weight.detach().float()[: target.vocab_size]
    place = input_device(head, torch.empty(0, device=target.device))
    columns = torch.eye(size, device=place, dtype=target.dtype)
    with torch.no_grad():
        bias = head(torch.zeros_like(columns[:1]))
        return (head(columns) - bias).float().T[: target.vocab_size].contiguous()
