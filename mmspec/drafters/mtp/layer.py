"""The layer itself, in the form of transformers' MtpLayer:

[norm(embedding) | norm(feature)] -> eh_proj -> a decoder layer of the model -> norm
"""

import copy
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import MtpLayer

from mmspec.attention import Reach
from mmspec.errors import ModelError
from mmspec.target.families import layer_reaches, mask_rules
from mmspec.target.stateful import state_kinds

_WHOLE, _EXPERTS = "full_attention", "sparse"


def build(model: PreTrainedModel) -> tuple[MtpLayer, PreTrainedConfig, Reach]:
    """The first such layer for the model, without weights (on the meta device), the config that
    its attention asks, and how far back it looks. Raises ModelError where there can be none, or
    where it keeps a running state."""
    decoder: Any = model.get_decoder()
    name = type(model).__name__
    config = _config(model)
    if 0 in state_kinds(config):
        raise ModelError(
            f"drafter=mtp: the layer of {name} keeps a running state, which cannot branch with a "
            "draft; take another drafter"
        )
    try:
        with torch.device("meta"):
            # Families differ in their norms: each has one of the same class behind its last layer.
            layer = MtpLayer(config, type(decoder.layers[-1]), type(decoder.norm), layer_idx=0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # by how it is built
        raise ModelError(
            f"drafter=mtp: transformers has no such layer of {name} ({error}); take another drafter"
        ) from error
    return layer, config, layer_reaches(config, mask_rules(config)[0])[0]


def _config(model: PreTrainedModel) -> PreTrainedConfig:
    """The text config, in which what is said of the layer with index 0 is said of this one."""
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "num_mtp_layers", None):
        with suppress(ValueError):  # of kinds of layers it does not say which one this is
            return model.config.get_mtp_config()
    config = copy.deepcopy(text)
    for name, usual in (("layer_types", _WHOLE), ("mlp_layer_types", _EXPERTS)):
        kinds = getattr(config, name, None) or [usual]
        own = usual if usual in kinds else kinds[-1]
        if kinds[0] != own:
            setattr(config, name, [own] * len(kinds))
    if hasattr(config, "first_k_dense_replace"):  # experts from this layer on
        config.first_k_dense_replace = 0
    return config


class Turns:
    """By what the model's layers turn queries and keys; None where they do without. A copy: some
    remember the longest text they met, and the model's own must not hear of drafts."""

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig) -> None:
        rotary: nn.Module | None = getattr(model.get_decoder(), "rotary_emb", None)
        self._rotary = copy.deepcopy(rotary)
        sections = (getattr(config, "rope_parameters", None) or {}).get("mrope_section") or ()
        self._planes = len(sections)  # of M-RoPE, in which a text counts alike
        self._told = dict[str, str]()
        if self._rotary is not None and "layer_type" in signature(self._rotary.forward).parameters:
            self._told["layer_type"] = config.layer_types[0]

    def __call__(self, states: Tensor, positions: Tensor) -> Any:
        """For `positions` (batch, seq) int64; in the dtype of `states`, and where they are."""
        if self._rotary is None:
            return None
        if self._planes:
            positions = positions.expand(self._planes, *positions.shape)
        turned = self._rotary(states, positions, **self._told)
        # A model over several devices makes them on one of its own.
        if isinstance(turned, Tensor):
            return turned.to(states.device)
        return tuple(part.to(states.device) for part in turned)
