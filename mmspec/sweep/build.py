"""Tiny models with weights that make their text move."""

import torch
from transformers import PreTrainedModel

from mmspec.sweep.names import Architecture
from mmspec.sweep.shrink import tiny_config
from mmspec.sweep.sizes import BOS_TOKEN, PAD_TOKEN
from mmspec.target.bundles import writing_part

# Attention must be sharp enough that an early token matters, and the head must spread the logits,
# so that greedy text is not one token again and again.
_GAINS = {"lm_head": 3.0, "q_proj": 1.6, "k_proj": 1.6, "c_attn": 1.6, "query_key_value": 1.6}


def build(architecture: Architecture, dtype: torch.dtype) -> PreTrainedModel:
    """A model in eval mode, of several in one the part that writes; the same weights at every call,
    drawn in float32. It never ends a text by itself."""
    config = tiny_config(architecture.model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Eager experts: the grouped matrix product takes no float64.
        model = architecture.model_class._from_config(
            config, dtype=dtype, experts_implementation="eager"
        )
    model = writing_part(model.eval())
    _draw(model, _embedding_std(model))
    model.generation_config.update(
        pad_token_id=PAD_TOKEN, bos_token_id=BOS_TOKEN, eos_token_id=None, do_sample=False
    )
    return model


def _embedding_std(model: PreTrainedModel) -> float:
    """Gemma multiplies its embeddings by the root of the hidden size: left at 1, the token would
    drown its context."""
    text = model.config.get_text_config(decoder=True)
    return 0.125 if "gemma" in text.model_type else 1.0


@torch.no_grad()
def _draw(model: PreTrainedModel, embedding_std: float) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if not parameter.is_floating_point() or "A_log" in name or "dt_bias" in name:
            continue
        if id(parameter) in embeddings:
            value = embedding_std * noise
        elif "q_norm" in name or "k_norm" in name:
            value = parameter.float() + 0.6 + 0.2 * noise
        elif parameter.dim() < 2:
            is_constant = parameter.numel() > 1 and bool((parameter == parameter[0]).all())
            value = parameter.float() + 0.2 * noise if is_constant else noise
        else:
            value = _gain(name) * noise * _fan_in(name, parameter) ** -0.5
        parameter.copy_(value)


def _gain(name: str) -> float:
    return next((gain for part, gain in _GAINS.items() if part in name), 1.2)


def _fan_in(name: str, parameter: torch.Tensor) -> float:
    if "experts." in name and parameter.dim() == 3:
        # Families disagree on which of the last two axes is the input: their mean.
        return (parameter.shape[1] * parameter.shape[2]) ** 0.5
    return float(max(parameter[0].numel(), 1))
