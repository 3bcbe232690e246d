"""Processed inputs of one request -> a Prompt, checked."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from mmspec.encoders.media import PIXELS, kind_of
from mmspec.errors import InputError
from mmspec.inputs.spans import find_spans, num_placeholders, placeholder_ids
from mmspec.state import Prompt

# What a processor's output holds beside the model's inputs: two that Prompt carries in its own
# way, training targets, and notes for the caller.
_NOT_INPUTS = ("input_ids", "attention_mask", "labels", "offset_mapping", "special_tokens_mask")
_PIXELS = {name for names in PIXELS.values() for name in names}


def from_inputs(
    inputs: Mapping[str, object], config: PreTrainedConfig, *, text: str | None = None
) -> Prompt:
    """The prompt of one request whose inputs are already processed.

    `inputs`: what a Hugging Face processor returns with return_tensors="pt": `input_ids` (1, seq),
    an `attention_mask` of ones if any, and the model's other inputs (`pixel_values`, ...), which
    are kept as they are; what is no tensor is dropped. Nothing is mutated.
    Raises InputError: a wrong shape, padding, no tokens, image or video placeholders without
    their features and the reverse.
    """
    ids = inputs.get("input_ids")
    if "role" in inputs and ids is None:
        raise InputError('got one chat message; expected a list of them: [{"role": ...}]')
    if "prompt" in inputs and ids is None:
        raise InputError(
            f"got a record with {', '.join(map(repr, inputs))}; expected its prompt alone, or "
            "mmspec.Request(prompt, images=..., ...)"
        )
    if not isinstance(ids, Tensor):
        raise InputError(
            f"got inputs {sorted(inputs)} with input_ids of type {type(ids).__name__}; expected "
            "a tensor (1, seq): call the processor with return_tensors='pt'"
        )
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise InputError(
            f"got input_ids of shape {tuple(ids.shape)}; expected (1, seq): one request at a time"
        )
    if ids.shape[1] == 0:
        raise InputError("the prompt is empty (0 tokens); expected at least one token")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputError(f"got input_ids of dtype {ids.dtype}; expected integers")
    _check_mask(inputs.get("attention_mask"), ids)
    check_positions(inputs.get("position_ids"), torch.ones_like(ids).bool())
    token_ids = ids[0].to("cpu", torch.int64)
    model_inputs = {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and name not in _NOT_INPUTS
        # One plane of positions counts the tokens, which is what they do where none are given.
        if name != "position_ids" or value.ndim != 2
    }
    _check_media(token_ids, model_inputs, config)
    return Prompt(
        token_ids=token_ids,
        model_inputs=model_inputs,
        media=find_spans(token_ids, config),
        text=text,
    )


def _check_mask(mask: object, ids: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"got attention_mask {shape}; expected the shape {tuple(ids.shape)}")
    num_masked = int((mask == 0).sum())
    if num_masked:
        raise InputError(
            f"got an attention_mask with {num_masked} zeros of {ids.shape[1]}; expected all ones: "
            "one request needs no padding, call the processor with padding=False"
        )


def check_positions(positions: object, kept: Tensor) -> None:
    """One plane of positions must count the tokens `kept`, (batch, seq) bool; the three of M-RoPE
    are the model's own. Raises InputError."""
    if not isinstance(positions, Tensor):
        return
    batch, seq = kept.shape
    if positions.ndim > 3 or positions.shape[-2:] not in ((1, seq), (batch, seq)):
        raise InputError(
            f"got position_ids {tuple(positions.shape)}; expected the shape {(batch, seq)}, or "
            "planes of it"
        )
    if positions.ndim == 2 and any(
        bool((row[keep.to(row.device)].diff() != 1).any())
        for row, keep in zip(positions.expand(kept.shape), kept, strict=True)
    ):
        raise InputError(
            "got position_ids that do not go up by one from token to token; expected none, or "
            "those that transformers makes itself"
        )


def _check_media(
    token_ids: Tensor, model_inputs: Mapping[str, Tensor], config: PreTrainedConfig
) -> None:
    counts = {kind: num_placeholders(token_ids, config, kind) for kind in PIXELS}
    num_heard = counts.pop("audio")
    given = {
        name: kind_of(name)
        for name, value in model_inputs.items()
        if value.is_floating_point() or name in _PIXELS
    }
    heard = [name for name, kind in given.items() if kind == "audio"]
    seen = [name for name, kind in given.items() if kind in ("image", "video")]
    for kind, count in counts.items():
        if count and len(given) == len(heard):  # a model of one's own may call pixels as it likes
            raise InputError(
                f"the prompt has {count} {kind} placeholder tokens and no pixel values; give the "
                f"{kind}, or take the placeholder out of the text"
            )
    audio_ids = placeholder_ids(config, "audio")
    if audio_ids and bool(num_heard) != bool(heard):
        raise InputError(
            f"the prompt has {num_heard} audio placeholder tokens (ids {sorted(audio_ids)}) and "
            f"the inputs {heard or 'no audio features'}; expected both or neither: give the "
            "recording and put its placeholder into the text"
        )
    ids = placeholder_ids(config, "image") | placeholder_ids(config, "video")
    if seen and ids and not any(counts.values()):
        raise InputError(
            f"got {seen} and no image or video placeholder token in the prompt; expected "
            f"ids {sorted(ids)}: put the placeholder into the text"
        )
