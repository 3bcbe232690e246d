"""Parts of blocks in few torch operations, for a CPU, where calling an operation is what costs:
projections stacked, one rotation for queries and keys."""

import copy
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspec.attention import TreeCall
from mmspec.target.parts import Added, Angles, Entered, Headed, Product, Products, activation_of
from mmspec.target.projections import Projections


class TorchKit:
    """For float32 and float64: 16 bits are emulated on most CPUs."""

    device_type = "cpu"
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def __init__(self, *, copied: bool = True) -> None:
        """`copied` allows copies of small weights."""
        self._copied = copied

    def block(self, layer: nn.Module) -> "TorchParts":
        return TorchParts(layer, copied=self._copied)

    def head(self, norm: nn.Module, linear: nn.Linear) -> "TorchHead":
        return TorchHead(norm, linear, copied=self._copied)

    def angles(self, cos: Tensor, sin: Tensor) -> Angles:
        """(batch, nodes, 1, head_dim) each, the sines negative in the first half."""
        first, second = sin.chunk(2, dim=-1)
        return Angles(cos.unsqueeze(2), torch.cat([-first, second], dim=-1).unsqueeze(2))

    def settle(self) -> None:
        pass

    def simplify(self) -> bool:
        return False


class TorchParts:
    """One block's."""

    def __init__(self, layer: nn.Module, *, copied: bool) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._index: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._qkv = Projections(
            cast(nn.Module, layer.input_layernorm),
            [attention.q_proj, attention.k_proj, attention.v_proj],
            copied=copied,
        )
        self._heads, self._kv_heads, _ = (size // self._head_dim for size in self._qkv.sizes)
        self._gate_up = Projections(
            cast(nn.Module, layer.post_attention_layernorm),
            [mlp.gate_proj, mlp.up_proj],
            copied=copied,
        )
        self._own = (attention.o_proj, mlp.down_proj)
        self._o: Product = attention.o_proj
        self._down: Product = mlp.down_proj
        self._head_norms = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]
        self._activation = activation_of(mlp)

    @property
    def num_bytes(self) -> int:
        return self._qkv.num_bytes + self._gate_up.num_bytes

    def with_products(self, products: Products) -> "TorchParts":
        other = copy.copy(self)
        other._qkv = self._qkv.with_products(products)
        other._gate_up = self._gate_up.with_products(products)
        other._o, other._down = (products.get(module, module) for module in self._own)
        return other

    def queries(
        self, states: Tensor, added: Added | None, angles: Angles, call: TreeCall
    ) -> Entered:
        states = states if added is None else states + added
        batch, nodes, _ = states.shape
        heads, kv_heads = self._heads, self._kv_heads
        qkv = self._qkv(states).view(batch, nodes, heads + 2 * kv_heads, self._head_dim)
        turning, value = qkv.split([heads + kv_heads, kv_heads], dim=2)
        q_norm, k_norm = self._head_norms
        if q_norm is not None and k_norm is not None:
            query, key = turning.split([heads, kv_heads], dim=2)
            turning = torch.cat([q_norm(query), k_norm(key)], dim=2)
        query, key = _rotated(turning, angles).split([heads, kv_heads], dim=2)
        call.layers[self._index].update(key.transpose(1, 2), value.transpose(1, 2))
        return Entered(states, query)

    def out(self, attended: Tensor) -> Tensor:
        return self._o(attended)

    def gated(self, states: Tensor, added: Added | None) -> Entered:
        states = states if added is None else states + added
        gate, up = self._gate_up(states).chunk(2, dim=-1)
        if self._activation == "silu":
            return Entered(states, F.silu(gate) * up)
        return Entered(states, F.gelu(gate, approximate="tanh") * up)

    def down(self, product: Tensor) -> Tensor:
        return self._down(product)


class TorchHead:
    """The last norm and the head."""

    def __init__(self, norm: nn.Module, linear: nn.Linear, *, copied: bool) -> None:
        self._norm = norm
        self._project = Projections(norm, [linear], copied=copied)

    def __call__(self, states: Tensor, added: Added | None) -> Headed:
        states = states if added is None else states + added
        # The norm is a part of the product here: by itself it is made for who looks at it.
        return Headed(self._project(states), partial(self._normed, states))

    @torch.no_grad()
    def _normed(self, states: Tensor) -> Tensor:
        normed: Tensor = self._norm(states)
        return normed

    def with_products(self, products: Products) -> "TorchHead":
        other = copy.copy(self)
        other._project = self._project.with_products(products)
        return other


def _rotated(states: Tensor, angles: Angles) -> Tensor:
    """(batch, nodes, heads, head_dim)"""
    first, second = states.chunk(2, dim=-1)
    return torch.addcmul(states * angles.cos, torch.cat([second, first], dim=-1), angles.sin)
