"""Parts of blocks in few kernels, for a GPU, where each launch costs a microsecond or two even in
a captured graph. No host-side number depends on a length, and nothing waits for the device."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from mmspec.attention import TreeCall
from mmspec.attention.kernels.early import can_begin_early
from mmspec.kernels import raise_if_lost, shown
from mmspec.kv import FlatLayer
from mmspec.target.early_begin import pays
from mmspec.target.gpu_linears import Clock, GpuLinears, measured
from mmspec.target.kernels.norm import add_norm
from mmspec.target.kernels.rotary import HeadNorms, turn
from mmspec.target.parts import Added, Angles, Entered, Headed, Products, activation_of
from mmspec.target.tilings import Tilings

logger = logging.getLogger(__name__)


class TritonKit:
    """For one GPU. Linear layers are the library's products, or skinny ones where `tilings` has
    one for the shape."""

    dtypes: tuple[torch.dtype, ...] = (
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
    )

    def __init__(
        self,
        tilings: Tilings | None = None,
        *,
        clock: Clock | None = None,
        device_type: str = "cuda",
        begins_early: bool = True,
    ) -> None:
        """With a `clock` tilings are measured, where none are given, and with `begins_early` what
        kernels gain by an early begin. `device_type` "cpu" is for Triton's interpreter."""
        self.device_type = device_type
        self._clock = clock if tilings is None else None
        self._begins_early = begins_early
        self.tilings = tilings or Tilings({})
        self.linears: list[GpuLinears] = []  # of all parts that were made
        self.parts: list[TritonParts] = []

    def block(self, layer: nn.Module) -> "TritonParts":
        parts = TritonParts(layer, self.tilings)
        self.linears += parts.linears
        self.parts.append(parts)
        return parts

    def head(self, norm: nn.Module, linear: nn.Linear) -> "TritonHead":
        head = TritonHead(norm, linear, self.tilings)
        self.linears.append(head.linear)
        return head

    def angles(self, cos: Tensor, sin: Tensor) -> Angles:
        return Angles(cos.contiguous(), sin.contiguous())

    def settle(self) -> None:
        if self._clock is None:
            return
        try:
            self.tilings.chosen.update(measured(self.linears, self._clock))
            if self._begins_early and self.parts and can_begin_early(self.linears[0].device):
                self.tilings.is_early = pays(self.parts, self.tilings, self._clock)
        except Exception as error:  # whatever a compiler may raise: the plain ones are there
            raise_if_lost(error, self.linears[0].device)
            logger.warning(
                "not all kernels of blocks were measured (%s); the plain ones are used",
                shown(error),
            )

    def simplify(self) -> bool:
        if self.tilings.is_early:
            self.tilings.is_early = False
        elif self.tilings.chosen:
            self.tilings.chosen.clear()
        else:
            return False
        return True


class TritonParts:
    """One block's."""

    num_bytes = 0

    @property
    def like(self) -> Tensor:
        """(hidden,) in the states' dtype and place."""
        weight: Tensor = self._middle_norm.weight
        return weight

    def __init__(self, layer: nn.Module, tilings: Tilings) -> None:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self._tilings = tilings
        self._index: int = attention.layer_idx
        self._head_dim: int = attention.head_dim
        self._input_norm: Any = layer.input_layernorm
        self._middle_norm: Any = layer.post_attention_layernorm
        self._head_norms: list[Any] = [getattr(attention, n, None) for n in ("q_norm", "k_norm")]
        self._qkv = GpuLinears([attention.q_proj, attention.k_proj, attention.v_proj], tilings)
        self._o = GpuLinears([attention.o_proj], tilings, is_added=True)
        activation = activation_of(mlp)
        assert activation is not None, "a block of a known kind"
        self._gate_up = GpuLinears([mlp.gate_proj, mlp.up_proj], tilings, activation=activation)
        self._down = GpuLinears([mlp.down_proj], tilings, is_added=True)

    @property
    def linears(self) -> "list[GpuLinears]":
        return [self._qkv, self._o, self._gate_up, self._down]

    @property
    def half_bytes(self) -> int:
        """Of the weights behind attention's output."""
        shapes = (self._gate_up.shape, self._down.shape)
        return sum(shape.num_weights * shape.dtype.itemsize for shape in shapes if shape)

    def with_products(self, products: Products) -> "TritonParts":
        other = copy.copy(self)
        other._qkv, other._o = self._qkv.with_products(products), self._o.with_products(products)
        other._gate_up = self._gate_up.with_products(products)
        other._down = self._down.with_products(products)
        return other

    def queries(
        self, states: Tensor, added: Added | None, angles: Angles, call: TreeCall
    ) -> Entered:
        call.is_early = self._tilings.is_early
        states, normed = self._normed(self._input_norm, states, added)
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
            is_early=self._tilings.is_early,
        )
        return Entered(states, turned)

    def out(self, attended: Tensor) -> Added:
        return self._o.added(attended)

    def gated(self, states: Tensor, added: Added | None) -> Entered:
        states, normed = self._normed(self._middle_norm, states, added)
        return Entered(states, self._gate_up(normed)[0])

    def down(self, product: Tensor) -> Added:
        return self._down.added(product)

    def _normed(self, norm: Any, states: Tensor, added: Added | None) -> tuple[Tensor, Tensor]:
        return _normed(norm, states, added, is_early=self._tilings.is_early)

    def _initialize(self, layer: FlatLayer, key: Tensor) -> None:
        first = key.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)
        layer.lazy_initialization(first, first)


class TritonHead:
    """The last norm and the head."""

    def __init__(self, norm: nn.Module, linear: nn.Linear, tilings: Tilings) -> None:
        self._norm, self._tilings = norm, tilings
        self.linear = GpuLinears([linear], tilings)

    def __call__(self, states: Tensor, added: Added | None) -> Headed:
        _, normed = _normed(self._norm, states, added, is_early=self._tilings.is_early)
        return Headed(self.linear(normed)[0], lambda: normed)

    def with_products(self, products: Products) -> "TritonHead":
        other = copy.copy(self)
        other.linear = self.linear.with_products(products)
        return other


def _normed(
    norm: Any, states: Tensor, added: Added | None, *, is_early: bool
) -> tuple[Tensor, Tensor]:
    epsilon = norm.variance_epsilon
    return add_norm(states, added, norm.weight, epsilon=epsilon, is_early=is_early)
