"""A target's linear layers in 8 or 4 bits, for its drafts alone (QuantSpec, arXiv 2502.10424).

A draft may be wrong, so what drafts with the target itself can do with a rougher copy of its
weights: a quarter of the bytes to read, or less. Embeddings, norms and KV are the target's own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.errors import ConfigError, ModelError
from mmspec.target.linears import text_linears
from mmspec.target.lowbit import Bits, LowBit, Pack, packer
from mmspec.target.untouched import LinearForward

logger = logging.getLogger(__name__)

Weights = Literal["same", "int8", "int4"]

_MIN_WEIGHTS = 4_096  # smaller layers cost nothing, and a low-bit kernel's call more than that
_MAX_ROWS = 256  # above, the full weights are as quick: their product is no longer bound by memory


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
        """`with_head` also takes the output embedding, in int8 whatever `bits` are, if torch can;
        where that is tied to the input's, which stays as it is, the copy is the head's alone.
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
        pack = {device: packer(bits, device) for device in {m.weight.device for m in modules}}
        self._forwards: list[tuple[nn.Linear, _LowBitLinear]] = []
        for module in modules:
            device = module.weight.device
            try:
                # In 4 bits a head costs most of what they lose.
                packed = pack[device] if module is not head else packer("int8", device)
                forward = _LowBitLinear(module, packed)
            except (ModelError, ValueError, RuntimeError) as error:  # no kernel of this shape
                logger.debug("%s: stays as it is: %s", module, error)
                continue
            self._forwards.append((module, forward))
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
        return sum(forward.num_bytes for _, forward in self._forwards)

    @property
    def full_bytes(self) -> int:
        """Memory of the weights that it is a copy of."""
        return sum(module.weight.nbytes for module, _ in self._forwards)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within it, the layers compute by the copy, in whatever thread; so it holds a target's
        lock (`Target.variant`). Layers that somebody else has given a forward keep that."""
        taken = [item for item in self._forwards if "forward" not in item[0].__dict__]
        try:
            for module, forward in taken:  # __dict__: nn.Module's own setattr takes a microsecond
                module.__dict__["forward"] = forward
            yield
        finally:
            for module, _ in taken:
                module.__dict__.pop("forward", None)


def check_weights(weights: str, key: str) -> Weights:
    """Raises ConfigError for a value of `key` that is none of `Weights`."""
    if weights not in get_args(Weights):
        raise ConfigError(f"{key}={weights!r}: expected one of {', '.join(get_args(Weights))}")
    return cast(Weights, weights)


class _LowBitLinear(LinearForward):
    """One layer's forward: (..., in_features) -> (..., out_features)."""

    def __init__(self, module: nn.Linear, pack: Pack) -> None:
        self._module = module
        self._pack = pack
        self._packed, self._packed_from = self._made()
        weight = module.weight
        self._packed(weight.new_ones(1, weight.shape[1]).detach())  # the kernel checks shapes here

    @property
    def num_bytes(self) -> int:
        return self._packed.num_bytes

    def __call__(self, states: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        rows = states.reshape(-1, states.shape[-1])
        if not 0 < rows.shape[0] <= _MAX_ROWS:
            return F.linear(states, weight, bias)
        if self._packed_from != (weight.data_ptr(), weight._version):
            self._packed, self._packed_from = self._made()
        out = self._packed(rows)
        if bias is not None:
            out = out + bias
        return out.reshape(*states.shape[:-1], -1)

    def _made(self) -> tuple[LowBit, tuple[int, int]]:
        weight = self._module.weight.detach()
        return self._pack(weight), (weight.data_ptr(), self._module.weight._version)


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
