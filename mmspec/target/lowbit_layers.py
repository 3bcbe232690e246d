"""LowBitLayers: linear layers that read the same states, by one low-bit copy of their weights."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspec.target.lowbit import LowBit, Pack
from mmspec.target.parts import Product
from mmspec.target.source import WeightSource

_MAX_ROWS = 256  # above, the full weights are as quick: their product is no longer bound by memory


class LowBitLayers:
    """One layer, or several whose weights are packed one below the other: what a low-bit product
    takes beside reading its weights, it takes once.

    The copy is made here, and again when one of the weights has changed since. The weights are
    never written to.
    """

    def __init__(self, modules: Sequence[nn.Linear], pack: Pack) -> None:
        """`modules` of the same inputs. Raises what the kernel raises at shapes that it does not
        take."""
        self.modules = tuple(modules)
        self._sizes = [module.weight.shape[0] for module in modules]
        self._pack = pack
        self._packed, self._packed_from = self._made()
        self._bias: Tensor | None = None  # of all layers
        self._bias_from: list[WeightSource] | None = None
        self._last: _Shared | None = None
        weight = modules[0].weight
        self._packed(weight.new_ones(1, weight.shape[1]).detach())  # the kernel checks shapes here

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    @property
    def forwards(self) -> list[Product]:
        """Of each layer by itself. Those that are given the same states one after the other share
        one product."""
        if len(self.modules) == 1:
            return [self]
        return [partial(self._part, index) for index in range(len(self.modules))]

    def forget(self) -> None:
        """Drops what was kept for layers that have not been called."""
        self._last = None

    def __call__(self, states: Tensor) -> Tensor:
        """(..., in_features) -> (..., all out_features), the layers' in their order"""
        if not 0 < states.numel() // states.shape[-1] <= _MAX_ROWS:
            made = [F.linear(states, module.weight, module.bias) for module in self.modules]
            return made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        if not _are_still(self._packed_from, self._there("weight")):
            self._packed, self._packed_from = self._made()
        out = self._packed(states)
        bias = self._biases()
        return out if bias is None else out + bias

    def _part(self, index: int, states: Tensor) -> Tensor:
        version = 0 if states.is_inference() else states._version
        last = self._last
        if last is None or last.states is not states or last.version != version:
            parts = self(states).split(self._sizes, dim=-1)
            self._last = last = _Shared(states, version, parts)
        last.waiting.discard(index)
        if not last.waiting:
            self._last = None
        return last.parts[index].contiguous()

    def _made(self) -> tuple[LowBit, list[WeightSource]]:
        weights = [module.weight.detach() for module in self.modules]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)
        return self._pack(whole), list(map(WeightSource, self._there("weight")))

    def _there(self, name: str) -> list[Tensor]:
        # nn.Module's own look-up takes a microsecond.
        tensors = [module._parameters[name] for module in self.modules]
        return [tensor for tensor in tensors if tensor is not None]

    def _biases(self) -> Tensor | None:
        there = self._there("bias")
        if not there or len(self.modules) == 1:
            return self.modules[0].bias
        if self._bias_from is None or not _are_still(self._bias_from, there):
            with torch.no_grad():
                self._bias = torch.cat(
                    [
                        module.weight.new_zeros(size) if module.bias is None else module.bias
                        for module, size in zip(self.modules, self._sizes, strict=True)
                    ]
                )
            self._bias_from = list(map(WeightSource, there))
        return self._bias


def _are_still(sources: Sequence[WeightSource], there: Sequence[Tensor]) -> bool:
    if len(sources) != len(there):
        return False
    return all(source.is_still(weight) for source, weight in zip(sources, there, strict=True))


class _Shared:
    """The outputs of all layers for some states, until each was asked for."""

    def __init__(self, states: Tensor, version: int, parts: Sequence[Tensor]) -> None:
        self.states, self.version, self.parts = states, version, parts
        self.waiting = set(range(len(parts)))
