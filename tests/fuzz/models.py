"""The targets that scenarios play, each built and probed once."""

from functools import cache
from typing import Any, NamedTuple

import torch
from draft_models import letters
from families import FAMILIES
from matrix import model_of

from mmspec.build import build_engine, probed_target
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.engine import Engine

from .chats import TEMPLATE

FEW_POSITIONS = 48


class Model(NamedTuple):
    """Which target."""

    family: str
    dtype: str
    has_few: bool  # positions


@cache
def small_model(family: str, dtype: str) -> Any:
    """With few positions."""
    model = FAMILIES[family].build(getattr(torch, dtype))
    config = model.config.get_text_config()
    config.max_position_embeddings = FEW_POSITIONS
    if family == "gpt2":
        table = model.transformer.wpe
        table.weight = torch.nn.Parameter(table.weight[:FEW_POSITIONS].clone())
    return model


@cache
def built(model: Model) -> Any:
    return (small_model if model.has_few else model_of)(model.family, model.dtype)


@cache
def probed_once(model: Model, attention: str, packed_weights: str) -> Any:
    """What is found out of a model before it is decoded takes longer than a scenario's texts."""
    decode = DecodeConfig(attention=attention, packed_weights=packed_weights)
    return probed_target(built(model), decode)


@cache
def plain_engine(model: Model) -> Engine:
    decode = DecodeConfig(max_nodes=0, controller="fixed", prefill_chunk=None, choosing="host")
    cache = CacheConfig(prefix_bytes=0, feature_bytes=0)
    config, probed = Config(decode=decode, cache=cache), probed_once(model, "auto", "auto")
    return build_engine(config, built(model), speaking(), [], probed=probed)


@cache
def speaking() -> Any:
    """Its tokenizer, with a chat template."""
    tokenizer = letters()
    tokenizer.chat_template = TEMPLATE
    return tokenizer
