"""DFlashConfig: what a published config.json says of a block diffusion head."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmspec.attention import Reach
from mmspec.drafters.heads import BlockConfig
from mmspec.errors import ConfigError

_BLOCK_SIZE = 16
_SLIDING = "sliding_attention"
_KINDS = ("full_attention", _SLIDING)


@dataclass(frozen=True)
class DFlashConfig:
    """One head. Its embedding is the target's, as is its lm_head where it speaks of the whole
    vocabulary."""

    block: BlockConfig  # its layers; `vocab_size` 0 where nothing is said of it
    block_size: int  # tokens of a block: the last one that was chosen, and masks behind it
    mask_token: int
    layers: tuple[int, ...]  # the target's hidden states that it reads, as transformers counts them
    reaches: tuple[Reach, ...]  # of each of its own layers
    is_causal: tuple[bool, ...]  # of each: whether a token of the block sees none behind it
    embedding_scale: float = 1.0
    output_scale: float = 1.0  # of logits, before they are capped
    softcap: float | None = None
    num_target_layers: int | None = None
    draft_vocab_size: int | None = None  # tokens that an lm_head of its own chooses from

    @staticmethod
    def read(given: Mapping[str, Any], *, who: str) -> "DFlashConfig":
        """z-lab's, speculators', or transformers' (an assistant of Muse Glimmer's). Raises
        ConfigError for what is no such head."""
        is_assistant = given.get("model_type") == "muse_glimmer_assistant"
        _check_kind(given, is_assistant, who)
        nested = given.get("transformer_layer_config")
        shape = {"vocab_size": 0, **(nested if isinstance(nested, Mapping) else given)}
        if is_assistant:
            shape.setdefault("layer_types", [_SLIDING] * (shape.get("num_hidden_layers") or 1))
        block = replace(BlockConfig.read(shape, who=who), qk_norm=True)
        kinds = shape.get("layer_types") or ["full_attention"] * block.num_layers
        _check(who, "layer_types", kinds, f"one of {_KINDS} for each of {block.num_layers} layers",
               len(kinds) == block.num_layers and set(kinds) <= set(_KINDS))  # fmt: skip
        said = {**given, **(given.get("dflash_config") or {})}
        layers = said.get("aux_hidden_state_layer_ids") or []  # counted as hidden states
        if said.get("target_layer_ids"):  # by what they come out of
            layers = [layer + 1 for layer in said["target_layer_ids"]]
        _check(who, "target_layer_ids", layers, "the target's layers that it reads", bool(layers))
        size, mask = said.get("block_size", _BLOCK_SIZE), said.get("mask_token_id", -1)
        _check(who, "block_size", size, "at least 2", isinstance(size, int) and size >= 2)
        _check(who, "mask_token_id", mask, "a token's id", isinstance(mask, int) and mask >= 0)
        own = said.get("sample_from_anchor")
        _check(who, "sample_from_anchor", own, "that nothing is said at the newest token", not own)
        window = block.window
        if is_assistant and window is not None:
            window += 1  # of tokens before it, which the token itself is not counted among
        is_causal = False if is_assistant else said.get("is_causal")
        if said.get("sliding_window_non_causal"):  # speculators' word for it
            is_causal = False
        drafted = said.get("draft_vocab_size")
        return DFlashConfig(
            block=block,
            block_size=size,
            mask_token=mask,
            layers=tuple(layers),
            reaches=tuple(Reach(window=window if kind == _SLIDING else None) for kind in kinds),
            is_causal=tuple(kind == _SLIDING if is_causal is None else is_causal for kind in kinds),
            embedding_scale=said.get("input_embedding_scale") or 1.0,
            output_scale=said.get("output_multiplier") or 1.0,
            softcap=said.get("final_logit_softcapping"),
            num_target_layers=said.get("num_target_layers"),
            draft_vocab_size=None if drafted == block.vocab_size else drafted,
        )


def _check_kind(given: Mapping[str, Any], is_assistant: bool, who: str) -> None:
    names = given.get("architectures") or []
    kind = given.get("speculators_model_type") or ", ".join(names)
    if is_assistant or kind in ("dflash", "DFlashDraftModel"):
        return
    raise ConfigError(
        f"{who}: a head of the kind {kind or given.get('model_type')}; expected "
        "DFlashDraftModel (not DFlash 2, with its convolutions and candidate selector), or another "
        "drafter's name in drafter.name"
    )


def _check(who: str, name: str, got: object, expected: str, is_right: bool) -> None:
    if not is_right:
        raise ConfigError(f"{who}: config.json says {name}={got!r}; expected {expected}")
