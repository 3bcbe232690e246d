"""Images, videos and recordings as tensors, without a processor: what form they have, and how many
placeholder tokens they fill, is asked of the model's own encoder."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.encoders.features import METHODS
from mmspec.encoders.outputs import feature_rows
from mmspec.inputs.spans import placeholder_ids
from mmspec.state import MediaKind

MEDIA: tuple[MediaKind, ...] = ("image", "audio", "video")
_SIDE = 28  # pixels of an image, where the model names no size
_FRAMES = 64  # of mel features, where the model names no number of positions
_TYPES = {"image": 1, "video": 2, "audio": 3}

Form = dict[str, Tensor]


def media_inputs(
    model: PreTrainedModel, kind: MediaKind, text: Sequence[int], *, seed: int
) -> Form | str:
    """A prompt with one medium in the middle of the text, as the model's forward takes it; or why
    there is none: "" where the model has no such input."""
    ids = placeholder_ids(model.config, kind)
    if not ids:
        return ""
    owner = _owner(model, METHODS[kind])
    forms = list(_forms(model, kind, seed))
    if owner is None:
        return _within_forward(model, kind, forms, text)
    failures: list[str] = []
    for form in forms:
        try:
            given = _accepted(form, model, getattr(owner, METHODS[kind]))
            with torch.no_grad():
                output = getattr(owner, METHODS[kind])(**given)
            count = len(feature_rows(output))
            prompt = _prompt(model, kind, text, count, form)
            _check_read(model, prompt, form)
        except Exception as error:  # the next form may be the right one
            failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:80]}")
            continue
        return prompt
    told = [one for one in dict.fromkeys(failures) if "is not read" not in one]
    return f"no form of input fits ({'; '.join(told[:3]) or 'none is known'})"


def _within_forward(
    model: PreTrainedModel, kind: MediaKind, forms: Sequence[Form], text: Sequence[int]
) -> Form | str:
    """The same for a model that has no method for features: the count is found by trying."""
    names = inspect.signature(model.forward).parameters
    for form in forms:
        for count in range(2, 65) if form.keys() <= names.keys() else ():
            prompt = _prompt(model, kind, text, count, form)
            try:
                _check_read(model, prompt, form)
            except Exception:  # of all forms and counts one fits
                continue
            return prompt
    return "no form of input fits"


def _check_read(model: PreTrainedModel, prompt: Form, form: Form) -> None:
    """Raises ValueError for a medium that the model does not look at."""
    other = {name: -value for name, value in form.items() if value.is_floating_point()}
    with torch.no_grad():
        found, changed = (model(**{**prompt, **part}).logits[0, -1] for part in ({}, other))
    if torch.equal(found, changed):
        raise ValueError("another medium changes nothing")


def _owner(model: nn.Module, method: str) -> nn.Module | None:
    return next((part for part in model.modules() if hasattr(type(part), method)), None)


def _accepted(form: Mapping[str, Tensor], model: nn.Module, method: Any) -> dict[str, Any]:
    """What of a form the method takes. Where it hands on whatever it gets, all of it. Raises
    TypeError for a form that has what the model does not read."""
    names = inspect.signature(method).parameters
    read = {*names, *inspect.signature(model.forward).parameters}
    if unread := form.keys() - read:
        raise TypeError(f"{sorted(unread)} is not read")
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in names.values()):
        return dict(form)
    return {name: value for name, value in form.items() if name in names}


def _prompt(
    model: PreTrainedModel, kind: MediaKind, text: Sequence[int], count: int, form: Form
) -> Form:
    token, half = min(placeholder_ids(model.config, kind)), len(text) // 2
    if kind == "image":  # as a video's, where they share one
        token = getattr(model.config, "image_token_id", token)
    start = getattr(model.config, "vision_start_token_id", None) if kind != "audio" else None
    before = [] if start is None else [start]
    tokens = [*text[:half], *before, *[token] * count, *text[half:]]
    ids = torch.tensor([tokens])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **form}
    names = inspect.signature(model.forward).parameters
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in names:
            inputs[name] = (ids == token).long() * (_TYPES[kind] if name[:2] == "mm" else 1)
    if "aspect_ratio_mask" in form:  # an image beside the tokens, seen from its placeholder on
        seen = (ids == token).long().cumsum(dim=1).clamp(max=1)
        inputs["cross_attention_mask"] = seen[..., None, None] * form["aspect_ratio_mask"][:, None]
    return inputs


def _forms(model: PreTrainedModel, kind: MediaKind, seed: int) -> Iterator[Form]:
    generator = torch.Generator().manual_seed(seed + 1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(model.dtype)

    if kind == "audio":
        yield from _audio_forms(model, noise)
        return
    vision = getattr(model.config, "vision_config", None) or model.config
    patch = _number(vision, "patch_size", 7)
    side = _number(vision, "image_size", _SIDE)
    merge = _number(vision, "spatial_merge_size", 2)
    frames = 1 if kind == "image" else 2
    channels = 3
    for depth in {_number(vision, "temporal_patch_size", 1), 1}:
        grid = torch.tensor([[frames, 2 * merge, (2 + seed) * merge]])
        patches = noise(int(grid.prod()), channels * depth * patch**2)
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        timed = {"video_second_per_grid": torch.tensor([1.0 + seed])}
        if kind == "video" and timed.keys() <= inspect.signature(model.forward).parameters.keys():
            yield {name: patches, "video_grid_thw": grid, **timed}
        yield {name: patches, f"{kind}_grid_thw": grid}
        if kind == "image" and depth == 1:
            square = noise(int(grid.prod()), channels, patch, patch)
            yield {name: square, "image_grid_thw": grid}
    if kind == "video":
        yield {"pixel_values_videos": noise(1, 4, channels, side, side)}
        return
    sizes = torch.tensor([[side, side]])
    if tiles := _number(vision, "max_num_tiles", 0):  # of which the first is filled
        padding = torch.zeros(1, 1, tiles - 1, channels, side, side, dtype=model.dtype)
        yield {
            "pixel_values": torch.cat([noise(1, 1, 1, channels, side, side), padding], dim=2),
            "aspect_ratio_ids": torch.tensor([[1]]),
            "aspect_ratio_mask": (torch.arange(tiles) < 1).long()[None, None],
        }
    if getattr(model.config, "image_grid_pinpoints", None):  # a base view and two tiles
        tall = torch.tensor([[2 * side, side] if seed else [side, 2 * side]])
        yield {"pixel_values": noise(1, 3, channels, side, side), "image_sizes": tall}
    one = noise(1, channels, side, side)
    yield {"pixel_values": one, "image_sizes": sizes}
    yield {"pixel_values": one}
    yield {"pixel_values": one[None], "pixel_attention_mask": torch.ones(1, 1, side, side).long()}
    yield {"pixel_values": one[None]}
    yield {"pixel_values": noise(1, 2, channels, side, side), "image_sizes": sizes}


def _audio_forms(model: PreTrainedModel, noise: Any) -> Iterator[Form]:
    audio = getattr(model.config, "audio_config", None)
    audio = audio or getattr(model.config, "encoder_config", None) or model.config
    names = ("num_mel_bins", "input_feat_size", "input_size", "feature_size", "input_dim")
    mels = next((n for n in (_number(audio, name, 0) for name in names) if n), 16)
    frames = 2 * _number(audio, "max_source_positions", _FRAMES // 2)
    features, mask = noise(1, mels, frames), torch.ones(1, frames, dtype=torch.bool)
    for one in (features, features.transpose(1, 2).contiguous()):
        yield {"input_features": one, "feature_attention_mask": mask.long()}
        yield {"input_features": one, "input_features_mask": mask.long()}
        yield {"input_features": one, "input_features_mask": mask}
        yield {"input_features": one}
    yield {"audio_input_features": features.transpose(1, 2), "audio_embed_sizes": torch.tensor([8])}
    yield {"input_values": noise(1, 6400), "padding_mask": torch.ones(1, 6400).bool()}
    yield {"input_values": noise(1, 1, 6400)}


def _number(config: object, name: str, otherwise: int) -> int:
    value = getattr(config, name, None)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else otherwise
