"""A longer context than a model was made for, by YaRN scaling of its rotary positions."""

from transformers import PreTrainedConfig

from mmspec.errors import ConfigError, ModelError


def with_context(config: PreTrainedConfig, tokens: int) -> PreTrainedConfig:
    """`config`, changed so that its text model takes texts of `tokens`: positions beyond those it
    was made for are reached by YaRN (arXiv 2309.00071, section 3.4) with a factor of just what is
    missing. A context that the model has anyway changes nothing.

    How well a model finds its way in such a text is its own affair: no weight is changed. The
    scaling is the same for every text, so the tokens of short ones change a little as well.

    Raises ConfigError, and ModelError for a model whose positions cannot be scaled.
    """
    if tokens < 1:
        raise ConfigError(f"model.context={tokens}: expected a number of tokens, or null")
    text = config.get_text_config(decoder=True)
    known = getattr(text, "max_position_embeddings", None)
    if known is not None and tokens <= known:
        return config
    why = reason_against_scaling(config)
    if known is None or why is not None:
        raise ModelError(f"model.context={tokens}: {why}")
    text.rope_parameters = {
        **text.rope_parameters,
        "rope_type": "yarn",
        "factor": tokens / known,
        "original_max_position_embeddings": known,
    }
    text.max_position_embeddings = tokens
    return config


def reason_against_scaling(config: PreTrainedConfig) -> str | None:
    """Why this model's positions cannot be scaled, if so."""
    text = config.get_text_config(decoder=True)
    known = getattr(text, "max_position_embeddings", None)
    kind = (getattr(text, "rope_parameters", None) or {}).get("rope_type")
    if known is None or kind is None:
        return (
            f"a {config.model_type} has no rotary positions of one kind to scale; its context is "
            f"{known or 'not told'}, leave model.context out"
        )
    if kind != "default":
        return (
            f"the positions of this model are scaled already ({kind}), to {known} tokens; expected "
            "no more than that, or other rope_parameters in its config.json"
        )
    return None
