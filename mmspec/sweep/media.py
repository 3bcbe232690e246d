"""Images, videos and recordings as tensors, without a processor: what form they have, and how many
placeholder tokens they fill, is asked of the model's own encoder."""

import inspect
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from mmspec.encoders.features import METHODS
from mmspec.encoders.outputs import FeatureError, feature_rows
from mmspec.inputs.spans import placeholder_ids
from mmspec.state import MediaKind
from mmspec.sweep.media_forms import Form, forms

MEDIA: tuple[MediaKind, ...] = ("image", "audio", "video")
_TYPES = {"image": 1, "video": 2, "audio": 3}
_MOST_TOKENS = 64  # of a medium, where their number is found by trying


class _UnreadError(Exception):
    """A form has a part that the model has no name for."""


def media_inputs(
    model: PreTrainedModel, kind: MediaKind, text: Sequence[int], *, seed: int
) -> Form | str:
    """A prompt with one medium in the middle of the text, as the model's forward takes it; or why
    there is none: "" where the model has no such input."""
    ids = placeholder_ids(model.config, kind)
    if not ids:
        return ""
    failures: list[str] = []
    for form in forms(model, kind, seed):
        try:
            counts = _counts(model, kind, form)
        except _UnreadError:
            continue
        except Exception as error:  # the next form may be the right one
            failures.append(_told(error))
            continue
        for count, layout in product(counts, _layouts(model, kind)):
            try:
                prompt = _prompt(model, kind, text, count, form, layout)
                _check_read(model, prompt, form)
            except Exception as error:  # nor need it be the right number, or place
                failures.append(_told(error))
                continue
            return prompt
    if kind == "video" and not failures:  # it has a placeholder, and nothing to put there
        return ""
    told = list(dict.fromkeys(failures))[:3]
    return f"no form of input fits ({'; '.join(told) or 'none is known'})"


def _counts(model: PreTrainedModel, kind: MediaKind, form: Form) -> Sequence[int]:
    """How many placeholders a medium may have: as many as it has features. Where there is no method
    for those, or it does not tell, all numbers. Raises where the form is not the model's."""
    any_number = range(2, _MOST_TOKENS + 1)
    padded = getattr(model.config, "audio_soft_tokens_per_image", None) if kind == "audio" else None
    # The whole model's comes first. It may hand on less than an inner one takes.
    methods = [getattr(part, METHODS[kind], None) for part in model.modules()]
    failure: Exception | None = None
    for method in filter(None, methods):
        given = _accepted(form, model, method)
        try:
            with torch.no_grad():
                return [padded or len(feature_rows(method(**given)))]
        except FeatureError:
            return any_number
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    _check_names(form, model)
    return any_number


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def _check_read(model: PreTrainedModel, prompt: Form, form: Form) -> None:
    """Raises ValueError for a medium that the model does not look at."""
    other = {name: -value for name, value in form.items() if value.is_floating_point()}
    with torch.no_grad():
        found, changed = (model(**{**prompt, **part}).logits[0, -1] for part in ({}, other))
    if torch.equal(found, changed):
        raise ValueError("another medium changes nothing")


def _accepted(form: Form, model: nn.Module, method: Any) -> dict[str, Any]:
    """What of a form the method takes. Where it hands on whatever it gets, all of it. Raises
    _UnreadError for a form that has what the model does not read."""
    names = inspect.signature(method).parameters
    _check_names(form, model, *names)
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in names.values()):
        return dict(form)
    return {name: value for name, value in form.items() if name in names}


def _check_names(form: Form, model: PreTrainedModel, *names: str) -> None:
    if unread := form.keys() - {*names, *inspect.signature(model.forward).parameters}:
        raise _UnreadError(f"{sorted(unread)} is not read")


class _Layout(NamedTuple):
    """How a medium lies in a prompt."""

    token: int  # its placeholder
    parts: int  # with text between them, as between a video's frames


def _layouts(model: PreTrainedModel, kind: MediaKind) -> Iterator[_Layout]:
    image = getattr(model.config, "image_token_id", None)
    own = min(placeholder_ids(model.config, kind))
    if kind == "image":  # as a video's, where they share one
        own = image or own
    tokens = dict.fromkeys((own, image) if kind == "video" and image is not None else (own,))
    for parts, token in product((1, 2) if kind == "video" else (1,), tokens):
        yield _Layout(token, parts)


def _prompt(
    model: PreTrainedModel,
    kind: MediaKind,
    text: Sequence[int],
    count: int,
    form: Form,
    layout: _Layout,
) -> Form:
    token, half = layout.token, len(text) // 2
    start = getattr(model.config, "vision_start_token_id", None) if kind != "audio" else None
    before = [] if start is None else [start]
    tokens, size = list(text[:half]), count // layout.parts
    for part in range(layout.parts):
        tokens += [*text[:part], *before, *[token] * size]
    ids = torch.tensor([[*tokens, *text[half:]]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **form}
    names = inspect.signature(model.forward).parameters
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"):
        if name in names:
            inputs[name] = (ids == token).long() * (_TYPES[kind] if "mm_" in name else 1)
    if "aspect_ratio_mask" in form:  # an image beside the tokens, seen from its placeholder on
        seen = (ids == token).long().cumsum(dim=1).clamp(max=1)
        inputs["cross_attention_mask"] = seen[..., None, None] * form["aspect_ratio_mask"][:, None]
    return inputs
