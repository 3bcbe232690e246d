"""The layer itself, in the form of transformers' MtpLayer:

[norm(embedding) | norm(feature)] -> eh_proj -> a decoder layer of the model -> norm
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import MtpLayer

from mmspec.attention import Reach
from mmspec.errors import ModelError
from mmspec.target.families import layer_reaches, mask_rules
from mmspec.target.stateful import state_kinds

_WHOLE, _DENSE, _EXPERTS = "full_attention", "dense", "sparse"


def build(
    model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> tuple[MtpLayer, PreTrainedConfig, Reach]:
    """The first such layer for the model, without weights (on the meta device), the config that
    its attention asks, and how far back it looks: of the kinds of layers that the model has the
    first that `tensors` fit. Raises ModelError where there can be none, or where it keeps a running
    state."""
    made: list[tuple[MtpLayer, PreTrainedConfig, Reach]] = []
    for config in _configs(model, has_experts=any(".experts." in name for name in tensors)):
        if made and 0 in state_kinds(config):
            continue
        layer = _made(model, config, has_post_norm="post_norm.weight" in tensors)
        made.append((layer, config, layer_reaches(config, mask_rules(config)[0])[0]))
        if _shapes(layer.state_dict()) == _shapes(tensors):
            return made[-1]
    return made[0]  # what differs will be told


def _made(model: PreTrainedModel, config: PreTrainedConfig, *, has_post_norm: bool) -> MtpLayer:
    decoder: Any = model.get_decoder()
    name = type(model).__name__
    if 0 in state_kinds(config):
        raise ModelError(
            f"drafter=mtp: the layer of {name} keeps a running state, which cannot branch with a "
            "draft; take another drafter"
        )
    try:
        with torch.device("meta"):
            # Families differ in their norms: each has one of the same class behind its last layer.
            return MtpLayer(config, type(decoder.layers[-1]), type(decoder.norm), 0, has_post_norm)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # by how it is built
        raise ModelError(
            f"drafter=mtp: transformers has no such layer of {name} ({error}); take another drafter"
        ) from error


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _configs(model: PreTrainedModel, *, has_experts: bool) -> list[PreTrainedConfig]:
    """The text config, in which what is said of the layer with index 0 is said of this one, for
    each kind that it may be of."""
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "num_mtp_layers", None):
        with suppress(ValueError):  # of kinds of layers it does not say which one this is
            return [model.config.get_mtp_config()]
    config = copy.deepcopy(text)
    _of_kind(config, "mlp_layer_types", _EXPERTS if has_experts else _DENSE)
    if hasattr(config, "first_k_dense_replace"):  # experts from this layer on
        config.first_k_dense_replace = 0 if has_experts else 1
    configs = []
    for kind in dict.fromkeys([_WHOLE, *reversed(getattr(config, "layer_types", None) or ())]):
        configs.append(copy.deepcopy(config))
        _of_kind(configs[-1], "layer_types", kind)
    return configs


def _of_kind(config: PreTrainedConfig, name: str, wanted: str) -> None:
    """Says of each layer that it is of the kind `wanted`, or where none is, of the last one's."""
    kinds = getattr(config, name, None) or [wanted]
    own = wanted if wanted in kinds else kinds[-1]
    if kinds[0] != own:
        setattr(config, name, [own] * len(kinds))


def renaming(model: PreTrainedModel) -> Callable[[str], str]:
    """By which what checkpoints call a weight of a layer becomes what the model calls it."""
    rules = [
        rule
        for rule in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(rule, WeightRenaming)
    ]

    def renamed(name: str) -> str:
        whole = f"model.layers.0.{name}"
        for rule in rules:
            whole, _ = rule.rename_source_key(whole)
        return whole.partition("layers.0.")[2]

    return renamed


class Turns:
    """By what the model's layers turn queries and keys; None where they do without. A copy: some
    remember the longest text they met, and the model's own must not hear of drafts."""

    def __init__(self, model: PreTrainedModel, config: PreTrainedConfig) -> None:
        rotary: nn.Module | None = getattr(model.get_decoder(), "rotary_emb", None)
        self._rotary = copy.deepcopy(rotary)
        sections = (getattr(config, "rope_parameters", None) or {}).get("mrope_section") or ()
        self.planes = max(len(sections), 1)  # of positions
        self._told = dict[str, str]()
        if self._rotary is not None and "layer_type" in signature(self._rotary.forward).parameters:
            self._told["layer_type"] = config.layer_types[0]

    def __call__(self, states: Tensor, positions: Tensor) -> Any:
        """For `positions` (batch, seq) int64, of M-RoPE (planes, batch, seq); in the dtype of
        `states`, and where they are."""
        if self._rotary is None:
            return None
        turned = self._rotary(states, positions, **self._told)
        # A model over several devices makes them on one of its own.
        if isinstance(turned, Tensor):
            return turned.to(states.device)
        return tuple(part.to(states.device) for part in turned)
