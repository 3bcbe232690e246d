"""Sizes: those of a decoder, and where a small decoder's numbers lie within a larger one's."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mmspec.errors import ConfigError


@dataclass(frozen=True)
class Sizes:
    """A dense decoder of the Llama kind, by the names of transformers' configurations."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Of a text configuration."""
        heads = config.num_attention_heads
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_attention_heads // self.num_key_value_heads


@dataclass(frozen=True)
class Places:
    """Where each number of a small decoder lies in a larger one, as row or column indices."""

    hidden: Tensor  # (hidden,)
    queries: Tensor  # (heads * head_dim,) rows of q_proj, columns of o_proj
    keys: Tensor  # (copies * kv_heads * head_dim,) rows of k_proj and v_proj
    keys_from: Tensor  # (copies * kv_heads * head_dim,) the small decoder's rows that go there
    query_heads: Tensor  # (heads,) the larger decoder's heads that hold one
    intermediate: Tensor  # (intermediate,)


def places(small: Sizes, large: Sizes) -> Places:
    """Query heads that share a KV head share one again. Where fewer may share it than did, the KV
    head is there several times.

    Raises ConfigError where something would not fit.
    """
    for field in fields(Sizes):
        old, new = getattr(small, field.name), getattr(large, field.name)
        if new < old:
            raise ConfigError(f"{field.name}={new}: expected at least the model's own {old}")
    if large.num_attention_heads % large.num_key_value_heads or large.head_dim % 2:
        raise ConfigError(
            f"num_attention_heads={large.num_attention_heads}, "
            f"num_key_value_heads={large.num_key_value_heads}, head_dim={large.head_dim}: expected "
            "heads that are a multiple of the KV heads, and an even head_dim"
        )
    copies = -(-small.group // large.group)
    if copies * small.num_key_value_heads > large.num_key_value_heads:
        raise ConfigError(
            f"num_key_value_heads={large.num_key_value_heads} for {large.num_attention_heads} "
            f"heads: expected {copies * small.num_key_value_heads} or more, as {small.group} heads "
            f"share one of the model's {small.num_key_value_heads} KV heads"
        )
    # Rotary embedding turns number i of a head together with number i + head_dim / 2.
    half = small.head_dim // 2
    within = torch.cat([torch.arange(half), torch.arange(half) + large.head_dim // 2])
    kv = torch.arange(small.num_key_value_heads)
    slots = torch.arange(small.group)
    to = kv[:, None] * copies + slots // large.group  # (kv_heads, group)
    heads = (to * large.group + slots % large.group).flatten()
    copied = (kv[:, None] * copies + torch.arange(copies)).flatten()
    sources = kv.repeat_interleave(copies)
    return Places(
        hidden=torch.arange(small.hidden_size),
        queries=(heads[:, None] * large.head_dim + within).flatten(),
        keys=(copied[:, None] * large.head_dim + within).flatten(),
        keys_from=(sources[:, None] * small.head_dim + torch.arange(small.head_dim)).flatten(),
        query_heads=heads,
        intermediate=torch.arange(small.intermediate_size),
    )
