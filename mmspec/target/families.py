"""Only what differs between model families: which masks they take, how their positions count, and
which cannot be decoded here. Everything else is asked of the model itself by the probe."""

import inspect
from typing import cast

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from mmspec.attention import Reach
from mmspec.errors import ModelError
from mmspec.target.cuts import Cuts
from mmspec.target.masks import LayerKind, MaskRule
from mmspec.target.stateful import state_kinds

_INDEXED = ("indexed_attention", "deepseek_sparse_attention")  # its name now and in 5.17
_KNOWN_KINDS = ("full_attention", "sliding_attention", "chunked_attention", *_INDEXED)
_WITHOUT_ATTENTION = ("linear_attention", "conv", "mlp", "moe")  # a running state, or nothing
_ATTENDING = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}  # beside a state
_FIRST_POSITION = {"paligemma": 1}  # position of the first token, 0 elsewhere

# Whose tokens see later ones: those of the same image; or who knows which, beside the families
# whose class makes masks of its own by what kind of token each is.
_MEDIA_BLOCKS = ("gemma3", "shieldgemma2")
_SEE_LATER = ("git", "step3p7", "deepseek_ocr2", "diffusion_gemma")
_OF_TEXTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")
_BIASES = ("build_alibi_tensor", "build_mpt_alibi_tensor")  # methods of Bloom's and MPT's decoders
_READ_AGAIN = ("phi3", "phi4_multimodal", "phimoe")  # by their own generate, at the border
_ROPE_BY_LENGTH = ("dynamic", "longrope")  # a longer prompt rotates all of its keys anew


def prompt_cuts(model: PreTrainedModel) -> Cuts:
    """Where the model's prompts may be cut. Who shows none of this is taken for causal: of text
    alone the probe tells."""
    config = model.config
    text = config.get_text_config(decoder=True)
    has_blocks = config.model_type in _MEDIA_BLOCKS
    sees_later = _masks_by_kind(model) or config.model_type in _SEE_LATER
    if sees_later and not has_blocks:
        return Cuts(f"in {config.model_type} the prompt's tokens see later ones")
    for rope in _ropes_by_length(text):
        return Cuts(f"{rope['rope_type']} positions depend on the prompt's length")
    return Cuts(has_blocks=has_blocks)


def _masks_by_kind(model: PreTrainedModel) -> bool:
    """Whether the masks of its prompts depend on which tokens are text (token_type_ids)."""
    rule = getattr(model, "create_masks_for_generate", None)
    names = () if rule is None else inspect.signature(rule).parameters
    return any("token_type_ids" in name for name in names)


def _ropes_by_length(text: PreTrainedConfig) -> list[dict[str, object]]:
    rope = getattr(text, "rope_parameters", None) or {}
    return [
        one
        for one in (rope, *rope.values())
        if isinstance(one, dict) and str(one.get("rope_type", "")).startswith(_ROPE_BY_LENGTH)
    ]


def rope_border(config: PreTrainedConfig) -> int | None:
    """The length from which on a text, or another of its batch, changes how all of them are
    rotated; None where none of the model's context is as long."""
    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    borders = [
        # A dynamic one changes beyond the model's context alone.
        rope.get("original_max_position_embeddings") if rope["rope_type"] == "longrope" else context
        for rope in _ropes_by_length(text)
    ]
    known = [border for border in borders if isinstance(border, int)]
    return min((b for b in known if context is None or b < context), default=None)


def is_read_again(config: PreTrainedConfig) -> bool:
    """Whether transformers' own generate turns all of a text's keys anew where it crosses the
    `rope_border`."""
    return config.model_type in _READ_AGAIN


def first_position(config: PreTrainedConfig) -> int:
    """The position id that the family gives to the first token of a text."""
    return _FIRST_POSITION.get(config.model_type, 0)


def mask_rules(config: PreTrainedConfig) -> tuple[MaskRule, ...]:
    """The mask rules that may fit the model, likeliest first; the probe finds the one that does."""
    text = config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    if not getattr(text, "use_sliding_window", True):
        window = None
    layer_types = getattr(text, "layer_types", None)
    if layer_types is None:
        kinds: tuple[str, ...] = ("full_attention" if window is None else "sliding_attention",)
    else:
        attending = [_ATTENDING.get(kind, kind) for kind in layer_types]
        kinds = tuple(dict.fromkeys(kind for kind in attending if kind not in _WITHOUT_ATTENTION))
    chunk = getattr(text, "attention_chunk_size", None)
    forms = (True,) if len(kinds) > 1 else (False, True)
    known = cast(tuple[LayerKind, ...], kinds)
    unmasked = _WITHOUT_ATTENTION if state_kinds(config) else ()
    return tuple(MaskRule(known, window, chunk, as_dict, unmasked) for as_dict in forms)


def layer_reaches(config: PreTrainedConfig, rule: MaskRule) -> tuple[Reach, ...]:
    """How far back each of the text model's layers looks, by layer index."""
    text = config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None) or rule.kinds[:1] * text.num_hidden_layers
    of_kind = {kind: rule.reach(_ATTENDING.get(kind, kind)) for kind in kinds}
    return tuple(of_kind[kind] for kind in kinds)  # the same object: each layer looks it up


def index_layers(config: PreTrainedConfig) -> tuple[int, ...]:
    """The text model's layers that choose which tokens they see, by keys of an index."""
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    return tuple(index for index, kind in enumerate(kinds) if kind in _INDEXED)


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises ModelError, with the reason, for a model that cannot be decoded here."""
    config = model.config
    text = config.get_text_config(decoder=True)
    name = type(model).__name__
    if config.is_encoder_decoder:
        raise ModelError(
            f"{name} is an encoder-decoder model; mmspec decodes decoder-only language and "
            "vision-language models. Use transformers' generate for it."
        )
    known = (*_KNOWN_KINDS, *_WITHOUT_ATTENTION, *_ATTENDING)
    kinds = [kind for kind in getattr(text, "layer_types", None) or () if kind not in known]
    if kinds or (getattr(model, "_is_stateful", False) and not state_kinds(config)):
        what = ", ".join(sorted(set(kinds))) or "recurrent"
        raise ModelError(
            f"{name} has layers of a kind that mmspec has no cache for ({what}). Use transformers' "
            "generate for it."
        )
    refuse_what_it_asks_for(type(model))
    named = inspect.signature(model.forward).parameters
    has_states_alone = "cache_params" in named
    if has_states_alone and not state_kinds(config):
        raise ModelError(
            f"{name} keeps nothing but running states, in a cache of its own keyword "
            "(cache_params): it has no attention, and takes neither past_key_values nor positions. "
            "Use transformers' generate for it."
        )
    if text.model_type == "falcon" and text.alibi:
        raise ModelError(
            f"{name} adds biases (ALiBi) that it makes from a 2-D attention_mask alone: neither "
            "the nodes of a token tree nor texts of different lengths can be told where they "
            "stand. Use transformers' generate for it."
        )
    if config.model_type == "vibevoice_asr" and "sample" not in named:
        raise ModelError(
            f"{name} adds noise to what it hears, and transformers {transformers.__version__} has "
            "no switch for it: the same seed would not be the same text. Install 5.23 or newer."
        )
    if not has_states_alone and not _takes_positions(model) and not _adds_biases(model):
        raise ModelError(
            f"{name}.forward takes no position_ids (fixed positions): the nodes of a token tree "
            "cannot be told where they stand. Use transformers' generate for it."
        )


def refuse_what_it_asks_for(kind: type[PreTrainedModel]) -> None:
    """Raises ModelError for a model that reads no text without a medium (BLIP-2)."""
    _, *inputs = inspect.signature(kind.forward).parameters.values()
    needed = [
        one.name
        for one in inputs
        if one.default is one.empty
        and one.kind is one.POSITIONAL_OR_KEYWORD
        and one.name not in _OF_TEXTS
    ]
    if needed:
        raise ModelError(
            f"{kind.__name__}.forward asks for {', '.join(needed)} with every part of a text: it "
            "does not decode one by itself. Use transformers' generate for it."
        )


def _adds_biases(model: PreTrainedModel) -> bool:
    """Whether it tells by a key's slot where it stands (ALiBi), and takes masks of our own. In a
    chain a token's slot is its place; whether trees can be scored too, the probe tells."""
    return any(hasattr(model.get_decoder(), name) for name in _BIASES)


def _takes_positions(model: PreTrainedModel) -> bool:
    """Whether position_ids get to the decoder: by name, or with what the model hands on."""
    own = inspect.signature(model.forward).parameters
    if "position_ids" in own:
        return True
    hands_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values())
    decoder = model.get_decoder() if hands_on else model
    return decoder is not model and "position_ids" in inspect.signature(decoder.forward).parameters
