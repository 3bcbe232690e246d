"""Positions of a prompt's tokens: 1-D, or the three planes of M-RoPE (arXiv 2409.12191)."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.state import Prompt
from mmspec.target.families import first_position


def prompt_positions(model: PreTrainedModel, prompt: Prompt) -> tuple[Tensor, int]:
    """(position_ids for the prefill, offset of the tokens after it).

    position_ids are (1, seq), or (3, 1, seq) for a prompt with media on an M-RoPE model. A token
    at index i after the prompt has position i + offset in every plane. Both are asked of the
    model's own rule and passed explicitly: the delta that some models keep on themselves is
    another request's, and is never read.
    """
    get_rope_index = _rope_index_of(model)
    if get_rope_index is None or not prompt.media:
        first = first_position(model.config)
        return torch.arange(first, first + prompt.num_tokens).unsqueeze(0), first
    accepted = inspect.signature(get_rope_index).parameters
    arguments = {name: value for name, value in prompt.model_inputs.items() if name in accepted}
    input_ids = prompt.token_ids.unsqueeze(0)
    positions, delta = get_rope_index(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **arguments
    )
    return positions, int(delta.item())


def _rope_index_of(model: PreTrainedModel) -> Callable[..., tuple[Tensor, Tensor]] | None:
    for module in (model, getattr(model, "model", None)):
        rule = getattr(module, "get_rope_index", None)
        if rule is not None:
            return rule
    return None
