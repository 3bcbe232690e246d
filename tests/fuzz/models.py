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


class Probing(NamedTuple):
    """What of a configuration is asked when a model is probed."""

    attention: str = "auto"
    attention_backend: str = "auto"
    packed_weights: str = "auto"
    probe: bool = True

    @classmethod
    def of(cls, decode: DecodeConfig) -> "Probing":
        return cls(*(getattr(decode, name) for name in cls._fields))

    def found(self, model: Any) -> Any:
        """Of a model that takes no trees, or another kind of draft, as long as it is asked."""
        asked = DecodeConfig(**self._asdict())
        if not self.probe:
            checked = probed_target(model, DecodeConfig(attention="model"))
            asked.probe = checked[1] != "tree"
        return probed_target(model, asked)


AS_IT_IS = Probing()


@cache
def probed_once(model: Model, probing: Probing = AS_IT_IS) -> Any:
    """What is found out of a model before it is decoded takes longer than a scenario's texts."""
    return probing.found(built(model))


@cache
def plain_engine(model: Model) -> Engine:
    decode = DecodeConfig(max_nodes=0, controller="fixed", prefill_chunk=None, choosing="host")
    cache = CacheConfig(prefix_bytes=0, feature_bytes=0)
    config, probed = Config(decode=decode, cache=cache), probed_once(model)
    return build_engine(config, built(model), speaking(), [], probed=probed)


@cache
def speaking() -> Any:
    """Its tokenizer, with a chat template."""
    tokenizer = letters()
    tokenizer.chat_template = TEMPLATE
    return tokenizer
