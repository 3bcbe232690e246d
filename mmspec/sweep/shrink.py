"""A family's own default config -> one of a model that is built in milliseconds."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmspec.sweep.exceptions import EXCEPTIONS
from mmspec.sweep.sizes import (
    BOS_TOKEN,
    EOS_TOKEN,
    FIRST_MEDIA_TOKEN,
    NUM_LAYERS,
    PAD_TOKEN,
    size_of,
)

_TOKEN = re.compile(r"_?(\w*?)_?(token_id|token_index|token_ids|tokens_ids)")
_KNOWN_TOKENS = {
    "pad": PAD_TOKEN,
    "bos": BOS_TOKEN,
    "eos": EOS_TOKEN,
    "decoder_start": BOS_TOKEN,
    "forced_eos": EOS_TOKEN,
    "sep": EOS_TOKEN,
    "mask": 3,
    "cls": 1,
}
_MROPE = (
    "glm4v", "glm_ocr", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl",
    "qwen3_omni", "qwen3_5", "cosmos3",
)  # fmt: skip
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LEFT_OUT = ("model_type", "transformers_version", "architectures", "dtype", "id2label", "label2id")


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A config of the family with hidden size 64, four heads over two, four layers, four experts,
    a window of 8 and a vocabulary of 160, in which every kind of layer that the default has comes.

    Raises what the config's class does: ValueError, TypeError and the like.
    """
    config_class = CONFIG_MAPPING[model_type]
    changes = _changes(config_class(), _Tokens())
    _lay(changes, EXCEPTIONS.get(model_type, {}))
    return config_class(**changes)


class _Tokens:
    """Gives each placeholder and delimiter an id of its own."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def id_of(self, name: str) -> int:
        if name in _KNOWN_TOKENS:
            return _KNOWN_TOKENS[name]
        return self._ids.setdefault(name, FIRST_MEDIA_TOKEN + len(self._ids))


def _changes(config: PreTrainedConfig, tokens: _Tokens) -> dict[str, Any]:
    """What differs from the config's defaults, sub-configs as nested dicts."""
    changes: dict[str, Any] = {}
    parts = {n: part for n, part in vars(config).items() if isinstance(part, PreTrainedConfig)}
    parts |= {name: tower() for name, tower in _left_out(config).items()}
    given = config.to_dict()
    layers = next((given[n] for n in _LAYERS if isinstance(given.get(n), int)), None)
    names = set(given) | {n for n in config.attribute_map if n.startswith("num_")}
    for name in sorted(names - set(_LEFT_OUT) - set(parts)):
        value = given.get(name)
        new = _changed(name, value, layers, tokens)
        if new is not None:
            changes[name] = new
    if given.get("qk_rope_head_dim"):  # latent attention: the head's size follows, one KV head each
        changes |= {"num_key_value_heads": 4} if "num_key_value_heads" in changes else {}
        changes |= {"head_dim": 8} if "head_dim" in given else {}
    if given.get("tie_word_embeddings"):  # a tied head says the same token again and again
        changes["tie_word_embeddings"] = False
    if given.get("is_decoder") is False and not config.is_encoder_decoder:
        changes["is_decoder"] = True
    if config.model_type.startswith(_MROPE) and "num_attention_heads" in changes:
        changes["rope_parameters"] = _with_sections(given.get("rope_parameters") or {})
    for name, part in parts.items():
        changes[name] = {**_changes(part, tokens), "model_type": part.model_type}
    return changes


def _left_out(config: PreTrainedConfig) -> dict[str, type[PreTrainedConfig]]:
    """The towers that the family may have, and by default has not."""
    towers: dict[str, type[PreTrainedConfig]] = {}
    for name in ("vision_config", "audio_config"):
        known = config.sub_configs.get(name)
        tower = getattr(known, "config_class", known)  # from transformers 5.2x on it is a record
        is_known = isinstance(tower, type) and issubclass(tower, PreTrainedConfig)
        if is_known and getattr(config, name, None) is None:
            towers[name] = tower
    return towers


def _changed(name: str, value: object, layers: int | None, tokens: _Tokens) -> Any:
    """The new value, or None to leave it."""
    token = _TOKEN.fullmatch(name)
    if token is not None and value is not None:
        found = tokens.id_of(token[1])
        return [found] if isinstance(value, list | tuple) else found
    if name == "head_dim" and value is None:
        return 16
    if name == "rope_parameters" and isinstance(value, dict):
        return _rope(value)
    if isinstance(value, list | tuple):
        if layers is not None and len(value) == layers and layers > 1:
            return _thinned(name, list(value))
        if value and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            new = size_of(name)
            return None if new is None else [new] * len(value)
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return size_of(name)


def _thinned(name: str, values: list[Any]) -> list[Any]:
    """As many values as there are layers now: each kind in turn, in the order of the default."""
    new = size_of(name)
    if new is not None:
        return [new] * NUM_LAYERS
    if not all(isinstance(value, str | int | float | bool) for value in values):
        return values[:NUM_LAYERS]
    kinds = list(dict.fromkeys(values))
    if len(kinds) >= NUM_LAYERS or not all(isinstance(value, str) for value in values):
        first = values[:NUM_LAYERS]
        missing = [kind for kind in kinds if kind not in first]
        return [*first[: NUM_LAYERS - 1], missing[0]] if missing else first
    order = sorted(kinds, key=values.index)
    return [order[i % len(order)] for i in range(NUM_LAYERS)]


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and factors that fit a head of 16."""
    changed: dict[str, Any] = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            changed[name] = _rope(value)
        elif name == "mrope_section":
            changed[name] = [2, 3, 3] if len(value) == 3 else [2] * len(value)
        elif name in ("short_factor", "long_factor"):
            changed[name] = [1.0 + 0.5 * i for i in range(8)]
        else:
            changed[name] = value
    if "rope_theta" in changed and changed["rope_theta"] is None:
        changed["rope_theta"] = 10_000.0
    return changed


def _with_sections(rope: Mapping[str, Any]) -> dict[str, Any]:
    """With the sections of M-RoPE's planes, which fill half of what is rotated of a head."""
    half = int(16 * rope.get("partial_rotary_factor", 1.0)) // 2
    third = half // 3
    found = {**_rope(rope), "mrope_section": [half - 2 * third, third, third]}
    return {"rope_type": "default", "rope_theta": 10_000.0, **found}


def _lay(changes: dict[str, Any], exceptions: Mapping[str, Any]) -> None:
    """Lays a family's exceptions over the changes; `...` takes a change away."""
    for name, value in exceptions.items():
        if value is ...:
            changes.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(changes.get(name), dict):
            _lay(changes[name], value)
        else:
            changes[name] = dict(value) if isinstance(value, Mapping) else value
