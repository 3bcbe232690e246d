"""LayerKV: the form of what a target keeps of a token, found by asking it."""

from typing import NamedTuple

import torch

from mmspec.errors import ConfigError
from mmspec.state import Prompt
from mmspec.target import Target


class LayerKV(NamedTuple):
    """What a target keeps of one token in one layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


def layer_kv(target: Target, layer: int) -> LayerKV:
    """What `layer` of the target, from 0 or < 0 from the end, keeps of a token. A forward of one
    token tells: configs say it in many ways.

    Raises ConfigError for a layer that is not there, or keeps nothing of its own.
    """
    cache = target.new_cache()
    layers = len(cache.layers)
    if not -layers <= layer < layers:
        raise ConfigError(
            f"drafter.glide: the head looks at layer {layer} of the target, which has {layers}; "
            "take a head that was trained for a target of this size"
        )
    target.prefill(Prompt(torch.zeros(1, dtype=torch.long)), cache, cache.open(1))
    flat = cache.flat_layers[layer]
    found = (flat.keys.shape, flat.values.shape[2]) if flat.is_initialized else None
    cache.release()
    if found is None:
        raise ConfigError(
            f"drafter.glide: layer {layer} of the target keeps no keys of its own; expected a head "
            "that looks at another one"
        )
    (_, kv_heads, key_dim), value_dim = found
    return LayerKV(kv_heads, key_dim, value_dim)
