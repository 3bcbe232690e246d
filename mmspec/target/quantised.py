"""A target's linear layers in 8 or 4 bits, for its drafts alone (QuantSpec, arXiv 2502.10424).

A draft may be wrong, so what drafts with the target itself can do with a rougher copy of its
weights: a quarter of the bytes to read, or less. Embeddings, norms and KV are the target's own.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from mmspec.errors import ConfigError, ModelError
from mmspec.target.linears import text_linears
from mmspec.target.lowbit import Bits, Pack
from mmspec.target.lowbit_choice import LowBitKernels
from mmspec.target.lowbit_layers import LowBitLayers
from mmspec.target.parts import Product
from mmspec.target.stacking import TOGETHER
from mmspec.target.tower import TextTower
from mmspec.target.untouched import forwarding

logger = logging.getLogger(__name__)

Weights = Literal["same", "int8", "int4", "fp8", "torchao_int4", "torchao_fp8"]

_MIN_WEIGHTS = 4_096  # smaller layers cost nothing, and a low-bit kernel's call more than that


class QuantisedLinears:
    """The text tower's linear layers and its head, which compute by a low-bit copy while attached.

    The copy is made here, and a layer's anew when its weight has changed since (an adapter merged,
    training). The target's parameters are never written to; adapters that are not merged stay as
    precise as they are, above a quantised base.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        bits: Bits = "int8",
        *,
        with_head: bool = True,
        min_weights: int = _MIN_WEIGHTS,
    ) -> None:
        """`with_head` also takes the output embedding: on a CPU in int8 whatever `bits` are, if
        torch can; on a GPU in fp8 with the others, and else it stays. Where it is tied to the
        input's, which stays as it is, the copy is the head's alone.
        Layers of fewer than `min_weights` weights, or of a form that the kernel does not take, are
        left as they are.

        Raises ConfigError for unknown `bits`; ModelError for a model without a floating-point
        linear layer to copy (quantised already) and where torch has no kernel for it.
        """
        if bits not in get_args(Bits):
            raise ConfigError(f"weights={bits!r}: expected one of {get_args(Bits)}")
        self.bits = bits
        head = model.get_output_embeddings()
        modules = [
            module
            for module in text_linears(model)
            if _is_floating(module) and module.weight.numel() >= min_weights
            if with_head or module is not head
        ]
        kernels = {
            device: LowBitKernels(bits, device) for device in {m.weight.device for m in modules}
        }
        self._copies: list[LowBitLayers] = []
        for group in _groups(model, modules):
            device = group[0].weight.device
            own = kernels[device] if group[0] is not head else _head_kernels(bits, device)
            if own is not None:
                self._copies += _copied(group, own.pack_for(group))
        self._forwards = [
            pair for one in self._copies for pair in zip(one.modules, one.forwards, strict=True)
        ]
        self._made: tuple[TextTower, TextTower] | None = None  # a tower, and the same by the copy
        if not self._forwards:
            raise ModelError(
                f"weights={bits}: {type(model).__name__} has no floating-point linear layer of "
                f"{min_weights} weights or more that could be copied; a model that is quantised "
                "already drafts with weights=same"
            )

    @property
    def num_layers(self) -> int:
        return len(self._forwards)

    @property
    def num_bytes(self) -> int:
        """Memory that the copy takes beside the target."""
        return sum(one.num_bytes for one in self._copies)

    def within(self, tower: TextTower) -> TextTower | None:
        """The tower, its linear layers computed by the copy."""
        if self._made is None or self._made[0] is not tower:
            products: dict[nn.Module | tuple[nn.Module, ...], Product] = dict(self._forwards)
            products |= {one.modules: one for one in self._copies}
            self._made = tower, tower.with_products(products)
        return self._made[1]

    @property
    def state(self) -> None:
        return None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it, the layers compute by the copy, in whatever thread; so it holds a target's
        lock (`Target.variant`). Layers that somebody else has given a forward keep that."""
        try:
            with forwarding(self._forwards):
                yield
        finally:
            for one in self._copies:
                one.forget()


def _groups(model: PreTrainedModel, modules: Sequence[nn.Linear]) -> list[list[nn.Linear]]:
    """All of the modules; on a CPU those that read the same states together."""
    left = dict.fromkeys(modules)
    groups: list[list[nn.Linear]] = []
    for parent in model.get_decoder().modules():
        for names in TOGETHER:
            group = [parent._modules.get(name) for name in names]
            some = [module for module in group if isinstance(module, nn.Linear) and module in left]
            if len(some) == len(group) and _are_alike(some):
                groups.append(some)
                for module in some:
                    del left[module]
    return [*groups, *([module] for module in left)]


def _are_alike(modules: Sequence[nn.Linear]) -> bool:
    kinds = {(m.weight.shape[1], m.weight.dtype, m.weight.device.type) for m in modules}
    return len(kinds) == 1 and modules[0].weight.device.type == "cpu"


def _copied(group: Sequence[nn.Linear], pack: Pack) -> list[LowBitLayers]:
    """One copy of all; else of each that the kernel takes."""
    try:
        return [LowBitLayers(group, pack)]
    except (ModelError, ValueError, RuntimeError) as error:  # no kernel of this shape
        if len(group) > 1:
            return [one for module in group for one in _copied([module], pack)]
        logger.debug("%s: stays as it is: %s", group[0], error)
        return []


def _head_kernels(bits: Bits, device: torch.device) -> LowBitKernels | None:
    """In 4 bits a head costs most of what they lose. None: it stays as it is."""
    if device.type == "cpu":
        return LowBitKernels("int8", device)
    return LowBitKernels(bits, device) if bits in ("fp8", "torchao_fp8") else None


def check_weights(weights: str, key: str) -> Weights:
    """Raises ConfigError for a value of `key` that is none of `Weights`."""
    if weights not in get_args(Weights):
        raise ConfigError(f"{key}={weights!r}: expected one of {', '.join(get_args(Weights))}")
    return cast(Weights, weights)


def _is_floating(module: nn.Linear) -> bool:
    weight = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.is_floating_point()
        and weight.element_size() > 1  # float8 is quantised already
        and weight.device.type != "meta"  # accelerate keeps it elsewhere between forwards
        and not weight.is_inference()
        and "forward" not in module.__dict__
    )
