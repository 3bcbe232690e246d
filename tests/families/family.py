"""What a test family is, and the seeded weights that every one of them gets."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

VOCAB_SIZE = 112
PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = 0, 1, 2
SPECIAL_TOKENS = {"pad_token_id": PAD_TOKEN, "bos_token_id": BOS_TOKEN, "eos_token_id": EOS_TOKEN}

# Gains chosen by looking at the logits: attention must be sharp enough that one early token
# matters, and the head must spread the logits so that greedy text is not one token repeated.
_GAINS = {
    "lm_head": 3.0,
    "q_proj": 1.6,
    "k_proj": 1.6,
    "c_attn": 1.6,
    "query_key_value": 1.6,
    "Wqkv": 1.6,
}


Kind = Literal["text", "vision", "audio"]


@dataclass(frozen=True)
class Family:
    """One model architecture, small enough to be built in milliseconds.

    `build(dtype)` returns a model in eval mode; its weights are drawn in float32 from a fixed seed
    and then cast, so that every call, and every dtype up to rounding, has the same weights.
    EOS is in the vocabulary but its row in the head is small: random text does not stop by itself.
    """

    name: str
    kind: Kind
    build: Callable[[torch.dtype], PreTrainedModel]
    takes_video: bool = False


def family(
    name: str,
    kind: Kind,
    model_class: type[PreTrainedModel],
    make_config: Callable[[], PreTrainedConfig],
    *,
    takes_video: bool = False,
    embedding_std: float = 1.0,
    attn_implementation: str | None = None,
) -> Family:
    """A Family whose models come from `make_config()`; the config is made only when one is built.

    `embedding_std` is for models that scale their embeddings up: left at 1, the input token would
    drown what attention brings from the image and the context. `attn_implementation` is named only
    where a version of transformers picks one by default that leaves a part of the model out.
    """
    build = partial(_build, model_class, make_config, embedding_std, attn_implementation)
    return Family(name, kind, build, takes_video)


def _build(
    model_class: type[PreTrainedModel],
    make_config: Callable[[], PreTrainedConfig],
    embedding_std: float,
    attn_implementation: str | None,
    dtype: torch.dtype,
) -> PreTrainedModel:
    config = make_config()
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    # Eager experts: the grouped matrix product takes no float64.
    with torch.random.fork_rng(devices=[]):
        model = model_class._from_config(config, dtype=dtype, experts_implementation="eager")
    _draw_weights(model, embedding_std)
    model.generation_config.update(**SPECIAL_TOKENS, do_sample=False)
    return model.eval()


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, embedding_std: float) -> None:
    """Overwrite every parameter of `model`, drawn in float32 in the order of their names."""
    generator = torch.Generator().manual_seed(1)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            value = embedding_std * noise
        elif "q_norm" in name or "k_norm" in name:
            value = parameter.float() + 0.6 + 0.2 * noise  # above 1: sharper attention
        elif parameter.dim() < 2:
            # Norm scales and biases stay near the constant they start from. The others (sinks,
            # class embeddings, single gates) are drawn anew: a random start depends on the dtype.
            is_constant = parameter.numel() > 1 and bool((parameter == parameter[0]).all())
            value = parameter.float() + 0.2 * noise if is_constant else noise
        else:
            value = _gain(name) * noise * _fan_in(name, parameter) ** -0.5
        if name.startswith("lm_head"):
            value[EOS_TOKEN] *= 0.1
        parameter.copy_(value)


def _gain(name: str) -> float:
    return next((gain for part, gain in _GAINS.items() if part in name), 1.2)


def _fan_in(name: str, parameter: torch.nn.Parameter) -> float:
    if "experts." in name and parameter.dim() == 3:
        # Families disagree on which of the last two axes is the input: take their mean.
        return (parameter.shape[1] * parameter.shape[2]) ** 0.5
    return float(parameter[0].numel())
