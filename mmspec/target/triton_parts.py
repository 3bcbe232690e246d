"""Parts of blocks in few kernels, for a GPU, where each launch costs a microsecond or two even in
a captured graph. No host-side number depends on a length, and nothing waits for the device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmspec.attention import TreeCall
from mmspec.kv import FlatLayer
from mmspec.target.kernels.gate import gate
from mmspec.target.kernels.norm import add_norm
from mmspec.target.kernels.rotary import HeadNorms, turn
from mmspec.target.kernels.skinny import multiply, multiply_gated
from mmspec.target.parts import Activation, Angles, Entered, Headed, activation_of
from mmspec.target.tilings import Shape, Tilings


class TritonKit:
    """For one GPU. Linear layers are the library's products, or skinny ones where `tilings` has
    one for the shape."""

    dtypes: tuple[torch.dtype, ...] = (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
    )

    def __init__(self, tilings: Tilings | None = None, *, device_type: str = "cuda") -> None:
        """`device_type` "cpu" is for Triton's interpreter."""
        self.tilings = tilings or Tilings({})
        self.device_type = device_type

    def block(self, layer: nn.Module) -> "TritonParts":
        return TritonParts(layer, self.tilings)

    def head(self, norm: nn.Module, linear: nn.Linear) -> "TritonHead":
        return TritonHead(norm, linear, self.tilings)

    def angles(self, cos: Tensor, sin: Tensor) -> Angles:
        return Angles(cos.contiguous(), sin.contiguous())


class TritonParts:
    """One block's."""

    num_bytes = 0

    def __init__(self, layer: nn.Module, tilings: Tilings) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._index: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._input_norm: Any = layer.input_layernorm
        self._middle_norm: Any = layer.post_attention_layernorm
        self._head_norms: list[Any] = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]
        self._qkv = Layers([attention.q_proj, attention.k_proj, attention.v_proj], tilings)
        self._o = Layers([attention.o_proj], tilings)
        self._gate_up = Layers([mlp.gate_proj, mlp.up_proj], tilings)
        self._down = Layers([mlp.down_proj], tilings)
        activation = activation_of(mlp)
        assert activation is not None, "a block of a known kind"
        self._activation = activation

    def queries(
        self, states: Tensor, added: Tensor | None, angles: Angles, call: TreeCall
    ) -> Entered:
        states, normed = _normed(self._input_norm, states, added)
        query, key, value = self._qkv(normed)
        layer = call.layers[self._index]
        if not layer.is_initialized:
            self._initialize(layer, key)
        q_norm, k_norm = self._head_norms
        norms = None
        if q_norm is not None:
            norms = HeadNorms(q_norm.weight, k_norm.weight, q_norm.variance_epsilon)
        turned = turn(
            query,
            key,
            value,
            cos=angles.cos,
            sin=angles.sin,
            keys=layer.keys,
            values=layer.values,
            tensors=call.tensors(states.device),
            norms=norms,
        )
        return Entered(states, turned)

    def out(self, attended: Tensor) -> Tensor:
        return self._o(attended)[0]

    def gated(self, states: Tensor, added: Tensor | None) -> Entered:
        states, normed = _normed(self._middle_norm, states, added)
        return Entered(states, self._gate_up.gated(normed, self._activation))

    def down(self, product: Tensor) -> Tensor:
        return self._down(product)[0]

    def _initialize(self, layer: FlatLayer, key: Tensor) -> None:
        first = key.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
        layer.lazy_initialization(first, first)


class TritonHead:
    """The last norm and the head."""

    def __init__(self, norm: nn.Module, linear: nn.Linear, tilings: Tilings) -> None:
        self._norm = norm
        self._linear = Layers([linear], tilings)

    def __call__(self, states: Tensor, added: Tensor | None, *, wants_normed: bool) -> Headed:
        _, normed = _normed(self._norm, states, added)
        return Headed(self._linear(normed)[0], normed if wants_normed else None)


class Layers:
    """Linear layers that read the same states."""

    def __init__(self, modules: Sequence[nn.Linear], tilings: Tilings) -> None:
        self.modules = list(modules)
        self._tilings = tilings
        self._sizes = [module.out_features for module in modules]

    def __call__(self, states: Tensor) -> Sequence[Tensor]:
        """(batch, nodes, in_features) -> (batch, nodes, out_features) of each."""
        shape = Shape.of(self.modules)
        tiling = None if shape is None else self._tilings.find(shape, _rows(states))
        if tiling is None:
            return [module(states) for module in self.modules]
        biases = [module.bias for module in self.modules] if shape and shape.has_bias else None
        weights = [module.weight for module in self.modules]
        out = multiply(states.flatten(0, 1), weights, biases, tiling)
        return out.view(*states.shape[:2], -1).split(self._sizes, dim=-1)

    def gated(self, states: Tensor, activation: Activation) -> Tensor:
        """activation(first) * second: (batch, nodes, in_features) -> (batch, nodes,
        out_features)."""
        shape = Shape.of(self.modules, is_gated=True)
        tiling = None if shape is None else self._tilings.find(shape, _rows(states))
        if tiling is None:
            gates, ups = (module(states) for module in self.modules)
            return gate(gates, ups, activation=activation)
        first, second = (module.weight for module in self.modules)
        out = multiply_gated(states.flatten(0, 1), first, second, tiling, activation=activation)
        return out.view(*states.shape[:2], -1)


def _normed(norm: Any, states: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    return add_norm(states, added, norm.weight, epsilon=norm.variance_epsilon)


def _rows(states: Tensor) -> int:
    return states.shape[0] * states.shape[1]
