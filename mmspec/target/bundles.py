"""Several models in one, of which one part writes the text: in Qwen-Omni others speak it."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from mmspec.errors import ModelError


def writing_part(model: PreTrainedModel) -> PreTrainedModel:
    """Of several models in one, which has no forward of its own (Qwen-Omni: one writes, others
    speak what it wrote), the part that writes the text; any other as it is.

    Raises ModelError where no part does.
    """
    if not _is_bundle(type(model)):
        return model
    text = model.config.get_text_config(decoder=True)
    for part in model.children():
        if isinstance(part, PreTrainedModel) and part.config.get_text_config(decoder=True) is text:
            return part
    raise ModelError(
        f"{type(model).__name__} is several models in one, and none of its parts "
        f"({', '.join(name for name, _ in model.named_children())}) has its text model; give "
        "mmspec.load the part that writes"
    )


def writing_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same of a configuration: that of the part, which transformers loads by itself out of the
    whole's folder."""
    kind = type(config)
    known = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    whole = next((mapping[kind] for mapping in known if kind in mapping), None)
    if whole is None or not _is_bundle(whole):
        return config
    text = config.get_text_config(decoder=True)
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return next(
        (
            part
            for part in parts
            if isinstance(part, PreTrainedConfig)
            and part is not text
            and part.get_text_config(decoder=True) is text
        ),
        config,
    )


def _is_bundle(kind: type[torch.nn.Module]) -> bool:
    return kind.forward is torch.nn.Module.forward
