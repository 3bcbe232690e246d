"""Positions of a prompt's tokens: 1-D, or the planes of M-RoPE (arXiv 2409.12191)."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.state import Prompt
from mmspec.target.families import first_position

_MEDIA_TYPES = {"image": 1, "video": 2, "audio": 3}  # transformers' mm_token_type_ids


def prompt_positions(model: PreTrainedModel, prompt: Prompt) -> tuple[Tensor, tuple[int, ...]]:
    """(position_ids for the prefill, offsets of the tokens after it).

    position_ids are (1, seq), or (planes, 1, seq) on an M-RoPE model. A token at index i after the
    prompt has position i + offset, in each plane its own: the planes go on from the prompt's last
    column, as in transformers' generate. All is asked of the model's own rule and passed on
    explicitly: the delta that some models keep on themselves is another request's, never read.
    Planes that the prompt brings along, (planes, 1, seq) `position_ids`, are taken as they are.
    """
    rope_index = _rope_index_of(model)
    first = first_position(model.config)
    positions = torch.arange(first, first + prompt.num_tokens).unsqueeze(0)
    if rope_index is None:
        return positions, (first,)
    given = prompt.model_inputs.get("position_ids")
    if given is not None and given.ndim == 3:
        # Before them, on some models, stands a plane of text positions.
        positions = given[-_num_planes(model) :].cpu()
    elif prompt.media:
        positions = _mrope_positions(rope_index, prompt)
    else:
        positions = positions.expand(_num_planes(model), 1, -1)
    last = positions[:, 0, -1] - (prompt.num_tokens - 1)
    return positions, tuple(last.tolist())


def _num_planes(model: PreTrainedModel) -> int:
    """Three of them nearly everywhere (HunYuan-VL has four)."""
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    return len(rope.get("mrope_section") or (1, 1, 1))


def _mrope_positions(rope_index: Callable[..., tuple[Tensor, Tensor]], prompt: Prompt) -> Tensor:
    accepted = inspect.signature(rope_index).parameters
    arguments = {name: value for name, value in prompt.model_inputs.items() if name in accepted}
    input_ids = prompt.token_ids.unsqueeze(0)
    if "mm_token_type_ids" in accepted and "mm_token_type_ids" not in arguments:
        arguments["mm_token_type_ids"] = _media_types(prompt)
    mask = prompt.model_inputs.get("feature_attention_mask")
    if "audio_seqlens" in accepted and mask is not None:  # Omni families ask for them by this name
        arguments["audio_seqlens"] = mask.sum(dim=-1)
    seconds = prompt.model_inputs.get("video_second_per_grid")
    if "second_per_grids" in accepted and seconds is not None:
        arguments["second_per_grids"] = seconds
    positions, _ = rope_index(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **arguments
    )
    return positions


def _media_types(prompt: Prompt) -> Tensor:
    """(1, seq): 0 for text, 1 for image, 2 for video and 3 for audio placeholders."""
    types = torch.zeros(1, prompt.num_tokens, dtype=torch.long)
    for span in prompt.media:
        types[0, span.start : span.stop] = _MEDIA_TYPES[span.kind]
    return types


def _rope_index_of(model: PreTrainedModel) -> Callable[..., tuple[Tensor, Tensor]] | None:
    for module in (model, getattr(model, "model", None)):
        rule = getattr(module, "get_rope_index", None)
        if rule is not None:
            return rule
    return None
