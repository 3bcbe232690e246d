"""The training forward: the model's own weights, with the attention logits of chosen heads.

It agrees with the transformers forward (a test says so) and returns what that hides: how much each
guided head attends to each place.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny.build import IMAGE


@dataclass(frozen=True)
class Outputs:
    """What one forward gives."""

    hidden: Tensor  # (batch, seq - start, hidden), after the last norm
    pointers: dict[tuple[int, int], Tensor]  # (layer, head) -> (batch, seq - start, seq) logits
    patches: Tensor | None  # (images, patches, hidden), the projector's output


def encode_images(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Projected patch features, (images, patches, hidden)."""
    tower = model.model.vision_tower(pixel_values, output_hidden_states=True)
    return model.model.multi_modal_projector(tower.hidden_states[-1][:, 1:])


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


def forward(
    model: LlavaForConditionalGeneration,
    token_ids: Tensor,  # (batch, seq), padded on the right
    positions: Tensor,  # (batch, seq)
    *,
    pixel_values: Tensor | None,
    start: int,
    guided: frozenset[tuple[int, int]] = frozenset(),
) -> Outputs:
    """Hidden states and guided logits from position `start` on, where the answers begin.

    What lies before `start` is read only as keys and values, so the last layer skips it. Padding
    on the right needs no mask: causal attention never looks at it from an answer.
    """
    text = model.model.language_model
    config = text.config
    states = text.embed_tokens(token_ids)
    patches = None
    if pixel_values is not None:
        patches = encode_images(model, pixel_values)
        states = states.masked_scatter((token_ids == IMAGE)[..., None], patches.to(states.dtype))
    cos, sin = text.rotary_emb(states, positions)
    cos, sin = cos[:, None], sin[:, None]  # (batch, 1, seq, head_dim)
    batch, seq = token_ids.shape
    head_dim, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    later = torch.arange(seq, device=token_ids.device)
    visible = later[start:, None] >= later  # (seq - start, seq)
    pointers = {}
    for index, layer in enumerate(text.layers):
        attention = layer.self_attn
        is_last = index == len(text.layers) - 1
        first = start if is_last else 0
        normed = layer.input_layernorm(states)
        query = attention.q_proj(normed[:, first:]).view(batch, seq - first, -1, head_dim)
        key = attention.k_proj(normed).view(batch, seq, -1, head_dim).transpose(1, 2)
        value = attention.v_proj(normed).view(batch, seq, -1, head_dim).transpose(1, 2)
        query = _rotate(query.transpose(1, 2), cos[:, :, first:], sin[:, :, first:])
        key = _rotate(key, cos, sin)
        query = query.to(value.dtype)
        key = key.to(value.dtype)
        for layer_index, head in guided:
            if layer_index == index:
                asked = query[:, head, start - first :]
                logits = asked @ key[:, head // groups].transpose(1, 2) * head_dim**-0.5
                pointers[layer_index, head] = logits.float().masked_fill(~visible, -1e9)
        mixed = F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1),
            value.repeat_interleave(groups, dim=1),
            attn_mask=visible if is_last else None,
            is_causal=not is_last,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, seq - first, -1)
        states = states[:, first:] + attention.o_proj(mixed)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    return Outputs(text.norm(states), pointers, patches)
