"""Medusa heads that know something of a tiny target: fitted in closed form to its own texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmspec.drafters.medusa import MedusaHead, MedusaHeadConfig

HEADS = 3


def head_config(model: Any, **changes: Any) -> MedusaHeadConfig:
    text = model.config.get_text_config()
    options = {"hidden_size": text.hidden_size, "vocab_size": text.vocab_size, "num_heads": HEADS}
    return MedusaHeadConfig(**(options | changes))


def unfitted(model: Any, *, seed: int = 4, spread: float = 0.3, **changes: Any) -> MedusaHead:
    """Heads of random weights."""
    draw = torch.Generator().manual_seed(seed)
    head = MedusaHead(head_config(model, **changes))
    for weight in head.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * spread
    return head.to(model.dtype).requires_grad_(False).eval()


@torch.no_grad()
def fitted(model: Any, texts: Sequence[Sequence[int]]) -> MedusaHead:
    """Heads that have learnt `texts` by heart, as far as the target's states tell their places
    apart: least squares, and nothing but their lm_heads."""
    head = unfitted(model, spread=0.0)
    states = [_states(model, text) for text in texts]
    for k, own in enumerate(head):
        read = torch.cat([state[: -k - 2] for state in states])
        goal = torch.cat([torch.tensor(text[k + 2 :]) for text in texts])
        wanted = torch.nn.functional.one_hot(goal, head.config.vocab_size or 0).to(read.dtype)
        gram = read.T @ read + 1e-6 * torch.eye(read.shape[1], dtype=read.dtype)
        own[-1].weight.copy_(20.0 * torch.linalg.solve(gram, read.T @ wanted).T)
    return head


def _states(model: Any, text: Sequence[int]) -> Tensor:
    output = model(input_ids=torch.tensor([list(text)]), output_hidden_states=True)
    return output.hidden_states[-1][0]
