"""A family's own default config -> one of a model that is built in milliseconds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mmspec.sweep.exceptions import EXCEPTIONS

VOCAB_SIZE = 160
PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = 0, 1, 2
FIRST_MEDIA_TOKEN = 100  # from here on ids are given to placeholders and delimiters
WINDOW = 8  # tokens that a sliding or chunked layer sees: prompts are longer
_LAYERS = 4

# Every tower has the same sizes, so that projections between them agree. The first rule whose
# expression matches the whole name of a number holds; others keep their default.
_SIZES: tuple[tuple[str, float], ...] = (
    (r"(unpadded_)?vocab_size(_per_layer_input)?|text_vocab_size", VOCAB_SIZE),
    (r"type_vocab_size|additional_vocab_size|vocab_size_per_layer_input_extra", 2),
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|depth|layers", _LAYERS),
    (r"num_decoder_layers|num_encoder_layers|num_blocks|resampler_depth|num_global_layers", 2),
    (
        r"hidden_size|d_model|n_embd|embed_dim|emb_dim|hidden_dim|out_hidden_size|output_dim"
        r"|text_hidden_size|projection_dim|embedding_size|word_embed_proj_dim|dim"
        r"|encoder_hidden_size|projector_hidden_size|projection_hidden_size|adapter_out_dim"
        r"|patch_embed_hidden_size|language_dim|input_size|ple_embed_dim|tokenizer_hidden_size"
        r"|downsample_hidden_size|qformer_hidden_size|audio_hidden_size",
        64,
    ),
    (r"hidden_size_per_layer_input|embedding_dim", 64),
    (
        r"(moe_|shared_|dense_|expert_|moe_shared_expert_|shared_expert_|shared_experts_"
        r"|swa_|projector_)?intermediate_size|ffn_hidden_size|(encoder_|decoder_)?ffn_dim|n_inner"
        r"|d_ff|dim_ff|mlp_dim|intermediate_size_mlp|expert_ffn_hidden_size|ffn_expansion_size"
        r"|expert_hidden_size",
        96,
    ),
    (
        r"(swa_)?num_attention_heads|n_heads?|num_heads|(encoder_|decoder_)?attention_heads"
        r"|resampler_n_heads|num_query_heads",
        4,
    ),
    (r"(swa_)?num_key_value_heads|num_kv_heads|kv_n_heads|n_kv_heads|multi_query_group_num", 2),
    (r"(swa_|global_|attention_|dense_|resampler_|linear_)?head_dim|d_kv|dim_head|kv_channels", 16),
    (r"swa_v_head_dim|v_head_dim|global_head_dim|head_size", 16),
    (r"qk_head_dim", 24),
    (r"qk_nope_head_dim|rotary_dim|index_head_dim", 16),
    (r"qk_rope_head_dim", 8),
    (r"(q|kv|o)_lora_rank|laurel_rank|time_step_rank|mamba_dt_rank|hc_lowrank", 16),
    (r"index_topk", 512),
    (r"index_n_heads", 2),
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_local_experts|num_moe_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_selected_experts|top_k_experts", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"zero_expert_num", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"moe_layer_end_index", _LAYERS - 1),
    (r"sliding_window|sliding_window_size|attention_chunk_size|local_attention_window", WINDOW),
    (r"_?sliding_window_pattern|global_attn_every_n_layers|attn_layer_period", 2),
    (r"expert_layer_period|decoder_sparse_step|cross_attention_frequency", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
    (r"max_window_layers", 2),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx", 4096),
    (r"num_kv_shared_layers", 2),
    (r"linear_(key|value)_head_dim", 16),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"mamba_(d_head|head_dim|d_state)|ssm_state_size|state_size", 16),
    (r"(mamba_)?n_mamba_heads|mamba_n_heads|mamba_num_heads", 8),
    (r"mamba_n_groups|n_groups", 1),
    (r"image_size", 28),
    (r"patch_size", 7),
    (r"query_pre_attn_scalar", 16),
    (r"num_mel_bins|input_dim|feature_size", 16),
    (r"max_source_positions", 32),
    (r"image_seq_length|num_image_tokens", 16),
    (r"mm_tokens_per_image", 4),
    (r"num_query_tokens|latent_query_num|resampler_n_latents", 4),
    (r"num_position_embeddings", 64),
    (r"num_codebooks|num_quantizers", 2),
    (r"codebook_size|num_embeddings", 32),
)
_RULES = tuple((re.compile(name), size) for name, size in _SIZES)
_TOKEN = re.compile(r"_?(\w*?)_?(token_id|token_index|token_ids|tokens_ids)")
_KNOWN_TOKENS = {
    "pad": PAD_TOKEN,
    "bos": BOS_TOKEN,
    "eos": EOS_TOKEN,
    "decoder_start": BOS_TOKEN,
    "forced_eos": EOS_TOKEN,
    "forced_bos": BOS_TOKEN,
    "sep": EOS_TOKEN,
    "mask": 3,
    "unk": 3,
    "cls": 1,
}
_MROPE = (
    "glm4v", "glm46v", "glm_ocr", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni",
    "ernie4_5_vl", "qwen3_vl", "qwen3_omni", "qwen3_5", "cosmos3",
)  # fmt: skip
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
    parts = {name: part for name, part in vars(config).items() if _is_config(part)}
    given = config.to_dict()
    layers = _number_of_layers(given)
    names = set(given) | {n for n in config.attribute_map if n.startswith("num_")}
    for name in sorted(names - set(_LEFT_OUT) - set(parts)):
        value = given.get(name)
        new = _changed(name, value, layers, tokens)
        if new is not None:
            changes[name] = new
    if given.get("qk_rope_head_dim"):  # latent attention: the head's size follows, one KV head each
        changes |= {"num_key_value_heads": 4} if "num_key_value_heads" in changes else {}
        changes |= {"head_dim": 8} if "head_dim" in given else {}
    if given.get("is_decoder") is False and not config.is_encoder_decoder:
        changes["is_decoder"] = True
    if config.model_type.startswith(_MROPE) and "num_attention_heads" in changes:
        changes["rope_parameters"] = _with_sections(given.get("rope_parameters") or {})
    for name, part in parts.items():
        changes[name] = {**_changes(part, tokens), "model_type": part.model_type}
    return changes


def _is_config(value: object) -> bool:
    return isinstance(value, PreTrainedConfig)


def _number_of_layers(given: Mapping[str, object]) -> int | None:
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if isinstance(given.get(name), int):
            return given[name]  # type: ignore[return-value]
    return None


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
            new = _size(name)
            return None if new is None else [new] * len(value)
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return _size(name)


def _size(name: str) -> float | None:
    return next((size for rule, size in _RULES if rule.fullmatch(name)), None)


def _thinned(name: str, values: list[Any]) -> list[Any]:
    """As many values as there are layers now: each kind in turn, in the order of the default."""
    new = _size(name)
    if new is not None:
        return [new] * _LAYERS
    if not all(isinstance(value, str | int | float | bool) for value in values):
        return values[:_LAYERS]
    kinds = list(dict.fromkeys(values))
    if len(kinds) >= _LAYERS or not all(isinstance(value, str) for value in values):
        first = values[:_LAYERS]
        missing = [kind for kind in kinds if kind not in first]
        return [*first[: _LAYERS - 1], missing[0]] if missing else first
    order = sorted(kinds, key=values.index)
    return [order[i % len(order)] for i in range(_LAYERS)]


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


def text_tokens(count: int, seed: int) -> Sequence[int]:
    """Ids of ordinary text, among which phrases come again."""
    phrases = [
        [3 + (seed * 31 + p * 17 + i * (7 + p)) % 90 for i in range(5 + p)] for p in range(3)
    ]
    text = [BOS_TOKEN, *phrases[0], *phrases[1]]
    place = seed
    while len(text) < count:
        text += phrases[place % 3]
        place = place * 5 + 1
    return text[:count]
