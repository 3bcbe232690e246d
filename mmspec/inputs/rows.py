"""A batch as transformers' generate hands it on -> one Prompt a row, padding left out.

Images, videos and recordings are given to rows by their placeholder tokens: each medium belongs to
the row whose placeholders it fills, in the order of the batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from mmspec.encoders.media import CROSS_MASK, MediaItem, kind_of, says_of_tokens
from mmspec.encoders.outputs import FeatureError, split_output
from mmspec.errors import InputError
from mmspec.inputs.prepared import check_positions
from mmspec.inputs.row_media import Count, media_of_rows, placeholders_of_rows
from mmspec.inputs.spans import find_spans
from mmspec.state import MediaKind, Prompt


def split_rows(
    input_ids: Tensor,
    model_inputs: Mapping[str, object],
    config: PreTrainedConfig,
    *,
    repeats: int = 1,
    count: Count | None = None,
) -> list[Prompt]:
    """The prompts of a batch: `input_ids` (batch, seq), padded wherever `attention_mask` (batch,
    seq) in `model_inputs` is 0, and the model's other inputs: of the tokens (batch, seq) or
    (planes, batch, seq), or of the media, as pixels or, from transformers 5.2x on, as
    `mm_encoder_outputs`. `repeats` rows, one behind the other, are of one prompt, and so is each
    entry of pixels there so often: not the media of one row, then those of the next. `count` says
    how many placeholders a medium fills, and is asked where nothing else tells. Nothing is mutated.

    Raises InputError where it is not clear which row an input belongs to.
    """
    mask = model_inputs.get("attention_mask")
    kept = mask.bool() if isinstance(mask, Tensor) else torch.ones_like(input_ids).bool()
    if kept.shape != input_ids.shape:
        raise InputError(
            f"got attention_mask {tuple(kept.shape)} for input_ids {tuple(input_ids.shape)}; "
            "expected the same shape: give the whole prompt, not what follows a cached prefix"
        )
    tokens = [row[keep].to("cpu", torch.int64) for row, keep in zip(input_ids, kept, strict=True)]
    spans = [find_spans(ids, config) for ids in tokens]
    own: list[dict[str, Tensor]] = [{} for _ in tokens]
    taken = {"attention_mask", "cache_position"}
    media_inputs = {
        name: value
        for name, value in model_inputs.items()
        if isinstance(value, Tensor) and not says_of_tokens(name, value, input_ids.shape)
    }
    check_positions(model_inputs.get("position_ids"), kept)
    made = _made(model_inputs.get("mm_encoder_outputs"))
    for parts, names in media_of_rows(tokens, spans, media_inputs, config, repeats, count):
        taken |= names
        for inputs, part in zip(own, parts, strict=True):
            inputs.update(part)
    for name, value in model_inputs.items():
        if not isinstance(value, Tensor) or name in taken:
            continue
        if name == CROSS_MASK and "aspect_ratio_ids" in model_inputs:  # (batch, seq, images, tiles)
            for row, (inputs, keep) in enumerate(zip(own, kept, strict=True)):
                if "aspect_ratio_ids" in inputs:
                    num_images = inputs["aspect_ratio_ids"].shape[1]
                    inputs[name] = value[row : row + 1, keep.to(value.device), :num_images]
        elif name == "position_ids" and value.ndim == 2:
            continue  # they count the tokens, which is what they do where none are given
        elif value.shape[-2:] == input_ids.shape:
            for row, (inputs, keep) in enumerate(zip(own, kept, strict=True)):
                inputs[name] = value[..., row : row + 1, keep.to(value.device)]
        elif len(tokens) == 1:
            own[0][name] = value
        elif kind_of(name) not in made:  # its encoder has read it
            raise InputError(
                f"got {name} of shape {tuple(value.shape)} in a batch of {len(tokens)}; it cannot "
                "be told which row each part belongs to: expected one prompt a call"
            )
    found = zip(tokens, own, _encoded(made, tokens, config), spans, strict=True)
    return [Prompt(ids, given, media, encoded=part) for ids, given, part, media in found]


_Outputs = dict[MediaKind, ModelOutput]


def _made(outputs: object) -> _Outputs:
    """What encoders have made already, for all rows."""
    given = outputs if isinstance(outputs, Mapping) else {}
    return {kind: output for kind, output in given.items() if output is not None}


def _encoded(made: _Outputs, tokens: Sequence[Tensor], config: PreTrainedConfig) -> list[_Outputs]:
    """Each row's part of it: as many features as it has placeholders."""
    rows: list[_Outputs] = [{} for _ in tokens]
    for kind, output in made.items():
        wanted = placeholders_of_rows(kind, tokens, config)
        if len(tokens) == 1:
            rows[0][kind] = output
            continue
        try:
            own = split_output(output, [MediaItem(kind, 0, count, {}) for count in wanted])
            parts = [one.form.build(one.rows) for one in own]
        except FeatureError as error:
            raise InputError(
                f"{kind}s of a batch of {len(tokens)}: {error}; expected each row's {kind}s, in "
                "order, to fill its placeholders"
            ) from error
        for row, count, part in zip(rows, wanted, parts, strict=True):
            if count:
                row[kind] = part
    return rows
