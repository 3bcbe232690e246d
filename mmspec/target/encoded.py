"""Features that the model's encoder has made already, as its forward takes them."""

from collections.abc import Mapping

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

_KINDS = ("image", "video")
NAMES = frozenset(f"{kind}_{part}" for kind in _KINDS for part in ("features", "deepstack"))


def is_prepared(model_inputs: Mapping[str, Tensor]) -> bool:
    """Whether features or positions came with the prompt: then it goes through in one piece."""
    return bool(model_inputs.keys() & (NAMES | {"position_ids"}))


def encoder_outputs(model_inputs: Mapping[str, Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """transformers' `mm_encoder_outputs` (from 5.2x on) of a prompt's `image_features`: (tokens,
    hidden), or (images, tokens, hidden) for families that want them stacked; and
    `image_deepstack`: (layers, tokens, hidden). The same for video. Empty where there are none."""
    outputs = {}
    for kind in _KINDS:
        features = model_inputs.get(f"{kind}_features")
        if features is None:
            continue
        pooled = features if features.ndim == 3 else [features]
        outputs[kind] = BaseModelOutputWithPooling(pooler_output=pooled)
        deepstack = model_inputs.get(f"{kind}_deepstack")
        if deepstack is not None:
            outputs[kind].deepstack_features = [[layer] for layer in deepstack]
    return outputs
