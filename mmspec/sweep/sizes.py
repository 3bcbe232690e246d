"""How large the parts of a tiny model are, by the names that configurations give them."""

import re

VOCAB_SIZE = 160
PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = 0, 1, 2
FIRST_MEDIA_TOKEN = 100  # from here on ids are given to placeholders and delimiters
WINDOW = 8  # tokens that a sliding or chunked layer sees: prompts are longer
NUM_LAYERS = 4

# Every tower has the same sizes, so that projections between them agree. The first rule whose
# expression matches the whole name of a number holds; others keep their default.
_SIZES: tuple[tuple[str, float], ...] = (
    (r"(unpadded_)?vocab_size(_per_layer_input)?", VOCAB_SIZE),
    (r"type_vocab_size|additional_vocab_size", 2),
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|depth|layers", NUM_LAYERS),
    (r"num_decoder_layers|num_encoder_layers|num_blocks|resampler_depth|num_global_layers", 2),
    (
        r"hidden_size|d_model|n_embd|embed_dim|emb_dim|hidden_dim|out_hidden_size|output_dim"
        r"|text_hidden_size|projection_dim|embedding_size|word_embed_proj_dim|encoder_hidden_size"
        r"|projector_hidden_size|projection_hidden_size|adapter_out_dim|patch_embed_hidden_size"
        r"|input_size|ple_embed_dim|downsample_hidden_size|audio_hidden_size|vision_hidden_size",
        64,
    ),
    (r"hidden_size_per_layer_input|embedding_dim", 64),
    (
        r"(moe_|shared_|dense_|expert_|moe_shared_expert_|shared_expert_|shared_experts_"
        r"|swa_|projector_)?intermediate_size|ffn_hidden_size|(encoder_|decoder_)?ffn_dim"
        r"|d_ff|dim_ff|mlp_dim|intermediate_size_mlp|expert_ffn_hidden_size",
        96,
    ),
    (
        r"(swa_)?num_attention_heads|n_heads?|num_heads|(encoder_|decoder_)?attention_heads"
        r"|resampler_n_heads",
        4,
    ),
    (r"(swa_)?num_key_value_heads|num_kv_heads|kv_n_heads", 2),
    (r"(swa_|global_|attention_|dense_|resampler_|linear_)?head_dim|d_kv|dim_head|kv_channels", 16),
    (r"v_head_dim", 16),
    (r"qk_head_dim", 24),
    (r"qk_nope_head_dim|rotary_dim|index_head_dim", 16),
    (r"qk_rope_head_dim", 8),
    (r"(q|kv|o)_lora_rank|laurel_rank|time_step_rank|mamba_dt_rank|hc_lowrank", 16),
    (r"index_topk", 6),  # fewer than a prompt's tokens
    (r"index_n_heads", 16),  # with few heads many tokens are of no use to any of them, and tie
    (r"(num|n)_(local_|routed_)?experts|moe_num_experts|num_local_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"zero_expert_num", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"moe_layer_end_index", NUM_LAYERS - 1),
    (r"sliding_window|sliding_window_size|attention_chunk_size", WINDOW),
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


def size_of(name: str) -> float | None:
    """The tiny value of a number of this name; None for one that stays."""
    return next((size for rule, size in _RULES if rule.fullmatch(name)), None)
