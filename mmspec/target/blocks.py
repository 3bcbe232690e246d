"""Decoder blocks in fewer operations, for score calls on a CPU.

With few tokens a small model spends its time on calling operations, not in them. A block of the
Llama kind is computed here with its projections stacked and one rotation for queries and keys;
such a block is two residual branches:

    x = x + o(attention(rotate(q(norm(x))), rotate(k(norm(x))), v(norm(x))))
    x = x + down(silu(gate(norm(x))) * up(norm(x)))
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspec.attention import LayerRule, TreeCall
from mmspec.attention.interface import KEYWORD, TAP_KEYWORD, attend_layer
from mmspec.kv import QueryTap
from mmspec.target.projections import Product, Projections
from mmspec.target.untouched import are_untouched, is_plain, places_in

if TYPE_CHECKING:
    from mmspec.target.tower import TextTower

_KINDS = frozenset(  # their forward is the block above; some norm queries and keys before rotating
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
_DTYPES = (torch.float32, torch.float64)
# What a block is told beside its input; with anything else it is left to its own forward.
_UNDERSTOOD = frozenset(
    {
        KEYWORD,
        TAP_KEYWORD,
        "attention_mask",
        "cache_position",
        "output_hidden_states",
        "past_key_values",
        "position_ids",
        "use_cache",
    }
)


class Blocks:
    """A model's decoder blocks, with another `forward` while attached. Their parameters stay what
    they are."""

    def __init__(self, layers: Sequence[nn.Module], *, copied: bool = True) -> None:
        """`copied` allows copies of small weights."""
        self._forwards = [(layer, Block(layer, copied=copied)) for layer in layers]
        self.tower: TextTower | None = None  # that runs them without the modules around, if any

    @property
    def each(self) -> "list[tuple[nn.Module, Block]]":
        """The layers, and how they are computed."""
        return self._forwards

    @property
    def num_bytes(self) -> int:
        """Bytes of the copies that there are."""
        return sum(block.num_bytes for _, block in self._forwards)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it, forwards that are given a TreeCall compute the blocks as above."""
        taken = [item for item in self._forwards if item[1].is_untouched()]
        if torch.is_autocast_enabled("cpu"):
            taken = []
        try:
            for layer, block in taken:  # __dict__: nn.Module's own setattr takes a microsecond
                layer.__dict__["forward"] = block
            yield
        finally:
            for layer, _ in taken:
                layer.__dict__.pop("forward", None)


class Block:
    """One block's forward: (batch, nodes, hidden) -> the same shape."""

    def __init__(self, layer: nn.Module, *, copied: bool) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._layer = layer
        self._places = places_in(layer)
        self._index: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._qkv = Projections(
            cast(nn.Module, layer.input_layernorm),
            [attention.q_proj, attention.k_proj, attention.v_proj],
            copied=copied,
        )
        self._heads, self._kv_heads, _ = (size // self.head_dim for size in self._qkv.sizes)
        self._gate_up = Projections(
            cast(nn.Module, layer.post_attention_layernorm),
            [mlp.gate_proj, mlp.up_proj],
            copied=copied,
        )
        self._o: Product = attention.o_proj
        self._down: Product = mlp.down_proj
        self._head_norms = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]

    @property
    def num_bytes(self) -> int:
        return self._qkv.num_bytes + self._gate_up.num_bytes

    def with_products(self, products: Mapping[nn.Module, Product]) -> "Block":
        """The same, some of its linear layers computed otherwise."""
        other = copy.copy(self)
        other._qkv = self._qkv.with_products(products)
        other._gate_up = self._gate_up.with_products(products)
        attention: Any = self._layer.self_attn
        mlp: Any = self._layer.mlp
        other._o = products.get(attention.o_proj, attention.o_proj)
        other._down = products.get(mlp.down_proj, mlp.down_proj)
        return other

    @property
    def layer(self) -> nn.Module:
        return self._layer

    def is_untouched(self) -> bool:
        """Whether nobody has a hand in the block, nor trains it."""
        layer = self._layer
        return not layer.training and is_plain(layer) and are_untouched(self._places)

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        call: TreeCall | None = kwargs.get(KEYWORD)
        if (
            call is None
            or args
            or position_embeddings is None
            or not self._computes(hidden_states, position_embeddings[0], kwargs)
        ):
            own = type(self._layer).forward
            options = {"position_embeddings": position_embeddings, **kwargs}
            return cast(Tensor, own(self._layer, hidden_states, *args, **options))
        return self.run(
            hidden_states, Angles.of(*position_embeddings), call, kwargs.get(TAP_KEYWORD)
        )

    def run(self, states: Tensor, angles: "Angles", call: TreeCall, tap: QueryTap | None) -> Tensor:
        """The block of `states` (batch, nodes, hidden); `tap` is told its queries."""
        states = states + self._attend(states, angles, call, tap)
        gate, up = self._gate_up(states).chunk(2, dim=-1)
        return states + self._down(F.silu(gate) * up)

    def _computes(self, states: Tensor, cos: Tensor, kwargs: dict[str, Any]) -> bool:
        return (
            states.dtype in _DTYPES
            and cos.ndim == 3
            and cos.shape[-1] == self.head_dim
            and all(
                name in _UNDERSTOOD or value is None or value is False
                for name, value in kwargs.items()
            )
        )

    def _attend(
        self, states: Tensor, angles: "Angles", call: TreeCall, tap: QueryTap | None
    ) -> Tensor:
        batch, nodes, _ = states.shape
        heads, kv_heads = self._heads, self._kv_heads
        qkv = self._qkv(states).view(batch, nodes, heads + 2 * kv_heads, self.head_dim)
        turning, value = qkv.split([heads + kv_heads, kv_heads], dim=2)
        q_norm, k_norm = self._head_norms
        if q_norm is not None and k_norm is not None:
            query, key = turning.split([heads, kv_heads], dim=2)
            turning = torch.cat([q_norm(query), k_norm(key)], dim=2)
        query, key = angles.rotate(turning).split([heads, kv_heads], dim=2)
        query = query.transpose(1, 2)
        call.layers[self._index].update(key.transpose(1, 2), value.transpose(1, 2))
        if tap is not None:
            tap.take(self._index, query, self._scaling)
        rule = LayerRule(call.reaches[self._index], self._scaling)
        out = attend_layer(query, call, self._index, rule)
        return self._o(out.reshape(batch, nodes, -1))


@dataclass(frozen=True)
class Angles:
    """What queries and keys are rotated by: RoPE, arXiv 2104.09864 section 3.4.2, a pair being a
    dimension and the one half a head further."""

    cos: Tensor  # (batch, nodes, 1, head_dim)
    sin: Tensor  # the same, negative in the first half

    @staticmethod
    def of(cos: Tensor, sin: Tensor) -> "Angles":
        """Of (batch, nodes, head_dim) each, as transformers makes them."""
        first, second = sin.chunk(2, dim=-1)
        return Angles(cos.unsqueeze(2), torch.cat([-first, second], dim=-1).unsqueeze(2))

    def rotate(self, states: Tensor) -> Tensor:
        """(batch, nodes, heads, head_dim)"""
        first, second = states.chunk(2, dim=-1)
        return torch.addcmul(states * self.cos, torch.cat([second, first], dim=-1), self.sin)


def is_known(layer: nn.Module) -> bool:
    kind = type(layer)
    if kind.__name__ not in _KINDS or not kind.__module__.startswith("transformers.models."):
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    return type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation") and all(
        type(linear) is nn.Linear  # quantised and adapted ones are of other types
        and type(linear.weight) is nn.Parameter
        and linear.weight.device.type == "cpu"
        and linear.weight.dtype in _DTYPES
        and not linear.weight.is_inference()
        for linear in linears
    )
