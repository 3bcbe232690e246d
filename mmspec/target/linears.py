"""Linear layers that are quick at the few rows of a score call, for float32 on an x86 CPU.

Measured there (docs/cpu.md): `F.linear` at one row of up to 1,792 inputs reaches half of the
memory's speed on AMD's CPUs, and at 4 to 16 rows costs as much as at 32. A product from the left by
two columns, and oneDNN with weights packed for it, do not.
"""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.target.source import WeightSource
from mmspec.target.untouched import forwarding

_MIN_WEIGHTS = 100_000  # smaller matrices stay in the CPU's own cache, where F.linear is as quick
_MAX_ROWS = 64  # above, all ways come together
# Of one row on one thread: longer rows of weights `F.linear` reads faster, from 4,096 on twice as
# fast. With more threads it is not: it uses one of them.
_MAX_INPUTS = 1_792
_MAX_AUTO_BYTES = 2 * 2**30
Forward = Callable[[Tensor], Tensor]


class Linears:
    """The text tower's large linear layers and its head, with another `forward` while attached.

    Their parameters stay what they are. A packed copy is made at the first call of 3 rows or more
    and again when its weight has changed since (an adapter merged, training).
    """

    def __init__(self, model: nn.Module, *, packed: bool = True) -> None:
        """`packed` allows a packed copy of the weights, as large as they are."""
        self._forwards = [
            (module, _QuickLinear(module, packed=packed)) for module in _eligible(model)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed copies that there are."""
        return sum(forward.num_bytes for _, forward in self._forwards)

    def of(self, module: nn.Module) -> Forward | None:
        """The quick forward of one of the layers, for who calls it alone; None for another's."""
        return next((forward for own, forward in self._forwards if own is module), None)

    def attached(self) -> AbstractContextManager[None]:
        """Within it, the layers compute by their quick forwards."""
        return forwarding(() if torch.is_autocast_enabled("cpu") else self._forwards)


def quick_linears(model: nn.Module, *, packed: bool | None = None) -> Linears | None:
    """Linears for a model that gains from them, or None. `packed` None packs up to 2 GiB."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if not torch.backends.mkldnn.is_available():
        return None
    size = sum(module.weight.nbytes for module in _eligible(model))
    if not size:
        return None
    return Linears(model, packed=size <= _MAX_AUTO_BYTES if packed is None else packed)


class _QuickLinear:
    """One layer's forward: (..., in_features) -> (..., out_features)."""

    def __init__(self, module: nn.Linear, *, packed: bool) -> None:
        self._module = module
        self._may_pack = packed
        self._packed: Tensor | None = None
        self._packed_from: WeightSource | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self._packed is None else self._module.weight.nbytes

    def __call__(self, states: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        rows = states.numel() // states.shape[-1]
        if states.dtype != torch.float32 or rows > _MAX_ROWS or not rows:
            return F.linear(states, weight, bias)
        if rows == 1 and weight.shape[1] > _MAX_INPUTS and torch.get_num_threads() == 1:
            return F.linear(states, weight, bias)
        if rows <= 2 and not _is_intel():
            return _from_the_left(states, weight, bias)
        if rows <= 2 or not self._may_pack:
            return F.linear(states, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(states, self._pack(weight), bias, "none", [], "")

    def _pack(self, weight: Tensor) -> Tensor:
        source = self._packed_from
        if self._packed is None or source is None or not source.is_still(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
            self._packed_from = WeightSource(weight)
        return self._packed


@cache
def _is_intel() -> bool:
    """There torch's MKL multiplies one or two rows as fast as the memory gives the weights, and a
    product from the left takes twice as long (scripts/bench_linears.py)."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return "Intel" in platform.processor()


def _from_the_left(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One or two rows as two columns: a matrix-vector product reads memory at half the speed."""
    rows = states.reshape(-1, states.shape[-1])
    two = rows if rows.shape[0] == 2 else torch.cat([rows, rows])
    product = torch.mm(weight, two.T)[:, : rows.shape[0]]
    # Row by row again: what comes next, and the next product most of all, reads rows.
    out = product.T.contiguous().view(*states.shape[:-1], -1)
    return out if bias is None else out + bias


def text_linears(model: nn.Module) -> list[nn.Linear]:
    """The text tower's linear layers, adapters' among them, and the head; of a module that is no
    model of transformers, all."""
    if not isinstance(model, PreTrainedModel):
        return [module for module in model.modules() if type(module) is nn.Linear]
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    modules = [*decoder.modules(), *([] if head is None else [head])]
    return [module for module in dict.fromkeys(modules) if type(module) is nn.Linear]


def _eligible(model: nn.Module) -> list[nn.Linear]:
    """Plain float32 layers on the CPU, without a forward of somebody else's (accelerate)."""
    return [module for module in text_linears(model) if _is_plain(module)]


def _is_plain(module: nn.Linear) -> bool:
    weight = module.weight
    return (
        type(weight) is nn.Parameter
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.numel() >= _MIN_WEIGHTS
        and weight.is_contiguous()
        and not weight.is_inference()
        and "forward" not in module.__dict__
    )
