"""Decoder blocks in fewer operations, for score calls.

With few tokens a model spends its time on calling operations, on a CPU and on a GPU, not in them.
A block of the Llama kind is computed here by the parts that a kit for the device makes; such a
block is two residual branches:

    x = x + o(attention(rotate(q(norm(x))), rotate(k(norm(x))), v(norm(x))))
    x = x + down(silu(gate(norm(x))) * up(norm(x)))
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmspec.attention import LayerRule, TreeCall
from mmspec.attention.interface import KEYWORD, TAP_KEYWORD, attend_layer
from mmspec.kv import QueryTap
from mmspec.target.parts import Added, Angles, Kit, Products, activation_of
from mmspec.target.untouched import Untouched, forwarding, is_plain, places_in

if TYPE_CHECKING:
    from mmspec.target.tower import TextTower

_KINDS = frozenset(  # their forward is the block above; some norm queries and keys before rotating
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
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

    def __init__(self, layers: Sequence[nn.Module], kit: Kit) -> None:
        """`layers` of known kinds; `kit` computes them."""
        self._kit = kit
        self._forwards = [(layer, Block(layer, kit)) for layer in layers]
        self.tower: TextTower | None = None  # that runs them without the modules around, if any

    @property
    def each(self) -> "list[tuple[nn.Module, Block]]":
        """The layers, and how they are computed."""
        return self._forwards

    @property
    def num_bytes(self) -> int:
        """Bytes of the copies that there are."""
        return sum(block.num_bytes for _, block in self._forwards)

    def simplify(self) -> bool:
        """They failed: they give up what is likeliest to have. False where nothing is left."""
        return self._kit.simplify()

    def attached(self) -> AbstractContextManager[None]:
        """Within it, forwards that are given a TreeCall compute the blocks as above."""
        if torch.is_autocast_enabled(self._kit.device_type):
            return nullcontext()
        return forwarding(item for item in self._forwards if item[1].is_untouched())


class Block:
    """One block's forward: (batch, nodes, hidden) -> the same shape."""

    def __init__(self, layer: nn.Module, kit: Kit) -> None:
        attention: Any = layer.self_attn
        self._layer, self._kit = layer, kit
        self._within = Untouched(places_in(layer))
        self._index: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._parts = kit.block(layer)

    @property
    def num_bytes(self) -> int:
        return self._parts.num_bytes

    def with_products(self, products: Products) -> "Block":
        """The same, some of its linear layers computed otherwise."""
        other = copy.copy(self)
        other._parts = self._parts.with_products(products)
        return other

    @property
    def layer(self) -> nn.Module:
        return self._layer

    def is_untouched(self) -> bool:
        """Whether nobody has a hand in the block, nor trains it."""
        layer = self._layer
        return not layer.training and is_plain(layer) and self._within.holds

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
        angles = self._kit.angles(*position_embeddings)
        states, added = self.run(hidden_states, None, angles, call, kwargs.get(TAP_KEYWORD))
        return states + added

    def run(
        self,
        states: Tensor,
        added: Added | None,
        angles: Angles,
        call: TreeCall,
        tap: QueryTap | None,
    ) -> tuple[Tensor, Added]:
        """The block of `states` + `added`, (batch, nodes, hidden) each, as such a sum that is yet
        to be made; `tap` is told its queries."""
        states, query = self._parts.queries(states, added, angles, call)
        query = query.transpose(1, 2)
        if tap is not None:
            tap.take(self._index, query, self._scaling)
        rule = LayerRule(call.reaches[self._index], self._scaling)
        attended = attend_layer(query, call, self._index, rule)
        added = self._parts.out(attended.reshape(*states.shape[:2], -1))
        states, product = self._parts.gated(states, added)
        return states, self._parts.down(product)

    def _computes(self, states: Tensor, cos: Tensor, kwargs: dict[str, Any]) -> bool:
        return (
            states.dtype in self._kit.dtypes
            and cos.ndim == 3
            and cos.shape[-1] == self.head_dim
            and all(
                name in _UNDERSTOOD or value is None or value is False
                for name, value in kwargs.items()
            )
        )


def is_known(layer: nn.Module, kit: Kit) -> bool:
    """Whether the kit computes such a layer as its own forward does."""
    kind = type(layer)
    if kind.__name__ not in _KINDS or not kind.__module__.startswith("transformers.models."):
        return False
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return (
        type(linears[0]) is nn.Linear  # a packed one may have no weight to look at
        and activation_of(mlp) is not None
        and all(is_ready(linear, kit, linears[0].weight.dtype) for linear in linears)
        and all(is_rms_norm(norm, linears[0].weight) for norm in norms)
    )


def is_ready(linear: nn.Module, kit: Kit, dtype: torch.dtype) -> bool:
    """A plain linear layer on the kit's device; quantised and adapted ones are of other types."""
    if type(linear) is not nn.Linear:
        return False
    weight = linear.weight
    return (
        type(weight) is nn.Parameter
        and weight.device.type == kit.device_type
        and weight.dtype == dtype
        and dtype in kit.dtypes
        and not weight.is_inference()
    )


def is_rms_norm(norm: Any, like: Tensor) -> bool:
    """One of transformers' own, in the dtype and place of `like`."""
    kind = type(norm)
    return (
        kind.__name__.endswith("RMSNorm")
        and kind.__module__.startswith("transformers.models.")
        and norm.weight.dtype == like.dtype
        and norm.weight.device == like.device
    )
