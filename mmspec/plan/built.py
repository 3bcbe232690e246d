"""What a config alone does not tell of a model with running states: asked of the model itself, in a
forward of a few tokens on torch's meta device, where nothing is allocated or computed."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mmspec.errors import ConfigError

_TOKENS = 8  # read; whatever the text, a state has one size
# Beginnings of what only configs of such models say.
_HINTS = ("mamba_", "linear_num_", "linear_conv", "ssm_", "conv_", "attn_layer_", "layers_block_")


@dataclass(frozen=True)
class StatefulShape:
    """Of a decoder whose layers keep running states."""

    layers: int
    attending: int  # layers that keep keys and values
    kv_heads: int
    head_dim: int
    weights: int  # of all matrices that a forward multiplies by, the head's among them
    state_bytes: int  # after one token, of all layers; the model in bfloat16


def may_keep_states(config: Mapping[str, object]) -> bool:
    """Whether a text model's config looks like it, which costs no import."""
    return any(key.startswith(_HINTS) for key in config) or any(
        "linear" in str(kind) or "conv" in str(kind) or "mamba" in str(kind)
        for kind in _listed(config.get("layer_types"))
    )


def stateful_shape(config: Mapping[str, object], name: str) -> StatefulShape | None:
    """Of a config.json's values; None where no layer keeps a state. Raises ConfigError for what
    transformers does not build or run."""
    import torch
    from torch import Tensor, nn
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    weights = 0

    def count(module: nn.Module, *unused: object) -> None:
        nonlocal weights
        weights += module.weight.numel() if isinstance(module.weight, Tensor) else 0

    try:
        with TemporaryDirectory() as folder:  # a file may write numbers that JSON does not have
            Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
            own = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            text = own.get_text_config(decoder=True)
        cache = DynamicCache(config=text)
        states = [one for one in cache.layers if isinstance(one, LinearAttentionCacheLayerMixin)]
        if not states:
            return None
        with torch.device("meta"), torch.no_grad():
            model = AutoModelForCausalLM.from_config(text, dtype=torch.bfloat16).eval()
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.register_forward_hook(count)
            ids = torch.zeros(1, _TOKENS, dtype=torch.long)
            takes = inspect.signature(model.forward).parameters
            keyword = "cache_params" if "cache_params" in takes else "past_key_values"
            model(input_ids=ids, use_cache=True, **{keyword: cache})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"{name}: keeps running states, whose size is found by building the model without its "
            f"weights, which failed ({type(error).__name__}: {error})"
        ) from error
    keys = [k for one in cache.layers if isinstance(k := getattr(one, "keys", None), Tensor)]
    kept = [
        tensor
        for one in states
        for tensor in (*one.conv_states.values(), *one.recurrent_states.values())
        if tensor is not None
    ]
    return StatefulShape(
        len(cache.layers),
        len(keys),
        keys[0].shape[1] if keys else 1,
        keys[0].shape[3] if keys else 1,
        weights,
        sum(tensor.nbytes for tensor in kept),
    )


def _listed(kinds: object) -> list[object]:
    return list(kinds) if isinstance(kinds, list) else []
