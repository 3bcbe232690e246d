"""One linear layer in 8 or 4 bits: a copy of its weight, packed for the kernel that multiplies it.

What torch itself has, found out by trying it: kernels differ by torch version, device and dtype.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor

from mmspec.errors import MissingExtraError, ModelError
from mmspec.target.fp8 import ScaledFp8
from mmspec.target.torchao_weights import TorchaoFp8, TorchaoInt4

Bits = Literal["int8", "int4", "fp8", "torchao_int4", "torchao_fp8"]
_GROUP = 32  # inputs that share a scale in int4: at 64 a small model agrees with itself far less
# Past OpOverload.__call__, which asks of every argument whether it is a tracer's: 2 us a call, and
# three times that when it has to be fetched again after the weights have passed the cache.
_LINEAR_DYNAMIC = torch.ops.quantized.linear_dynamic.default._op
_ONE_SCALE = 1e-8  # of a row of zeros: any will do, but 0
_TRIED = 128  # inputs and outputs of the weight that a kernel is tried on
_MOST_ERROR = 0.3  # of a trial, relative: four bits of random weights are off by a tenth


class LowBit(Protocol):
    """A packed weight (out_features, in_features), without the layer's bias."""

    num_bytes: int

    def __call__(self, states: Tensor) -> Tensor:
        """(..., in_features) in any floating dtype -> (..., out_features) in the same."""


class DynamicInt8:
    """Eight bits on both sides: weights with a scale a row, activations with one a call, found on
    the fly. What CPUs multiply fastest (FBGEMM, oneDNN, QNNPACK, as torch was built)."""

    engine: str | None = None  # of torch.backends.quantized; None: what torch takes by itself

    def __init__(self, weight: Tensor) -> None:
        """Raises RuntimeError for an engine that torch was built without."""
        scale = _row_scale(weight)
        # Quantised tensors are deprecated, the kernel is not.
        with _engine(self.engine), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch.quantize_per_channel(
                weight.float(), scale.double(), torch.zeros_like(scale, dtype=torch.long), 0,
                torch.qint8,
            )  # fmt: skip
            self._packed = torch.ops.quantized.linear_prepack(quantised, None)
        # Without VNNI two products of 8 x 8 bits are added in 16: a bit less of range, no overflow.
        self._reduce_range = not torch.cpu._is_vnni_supported()
        self.num_bytes = weight.numel() + 12 * weight.shape[0]  # scales, zero points, row sums

    def __call__(self, states: Tensor) -> Tensor:
        if states.dtype == torch.float32:
            return _LINEAR_DYNAMIC(states, self._packed, self._reduce_range)
        out = _LINEAR_DYNAMIC(states.float(), self._packed, self._reduce_range)
        return out.to(states.dtype)


class OneDnnInt8(DynamicInt8):
    """The same by oneDNN, where that is not what torch takes by itself."""

    engine = "onednn"


class WeightInt8:
    """Eight bits of weight alone, a scale a row; activations in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        scale = _row_scale(weight)
        self._packed = (weight.float() / scale[:, None]).round().to(torch.int8)
        self._scale = scale.bfloat16()
        self.num_bytes = self._packed.nbytes + self._scale.nbytes

    def __call__(self, states: Tensor) -> Tensor:
        rows = states.bfloat16().flatten(0, -2)
        out = torch._weight_int8pack_mm(rows, self._packed, self._scale)
        return out.to(states.dtype).view(*states.shape[:-1], -1)


class WeightInt4:
    """Four bits of weight, a scale and a zero point a group of inputs; activations in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        outs, ins = weight.shape
        if ins % _GROUP:
            raise ValueError(f"{ins} inputs are no multiple of {_GROUP}")
        grouped = weight.float().view(outs, ins // _GROUP, _GROUP)
        low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
        scale = ((high - low) / 15).clamp(min=_ONE_SCALE)
        levels = ((grouped - low[..., None]) / scale[..., None]).round().clamp(0, 15)
        levels = levels.to(torch.int32).view(outs, ins)
        # The kernels count levels from the middle, 8.
        scales = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous()
        self._scales = scales.bfloat16()
        if weight.device.type == "cpu":
            self._packed = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
            self._multiply = torch._weight_int4pack_mm_for_cpu
        else:
            bytes_ = (levels[:, ::2] << 4 | levels[:, 1::2]).to(torch.uint8)
            self._packed = torch._convert_weight_to_int4pack(bytes_, _inner_tiles(ins))
            self._multiply = torch._weight_int4pack_mm
        self.num_bytes = self._packed.nbytes + self._scales.nbytes

    def __call__(self, states: Tensor) -> Tensor:
        rows = states.bfloat16().flatten(0, -2)
        out = self._multiply(rows, self._packed, _GROUP, self._scales)
        return out.to(states.dtype).view(*states.shape[:-1], -1)


Pack = Callable[[Tensor], LowBit]
_LADDER: dict[Bits, Sequence[type]] = {
    "int8": (DynamicInt8, OneDnnInt8, WeightInt8),
    "int4": (WeightInt4,),
    "fp8": (ScaledFp8,),
    "torchao_int4": (TorchaoInt4,),
    "torchao_fp8": (TorchaoFp8,),
}


def packer(bits: Bits, device: torch.device) -> Pack:
    """The first of `packers`."""
    return packers(bits, device)[0]


def packers(bits: Bits, device: torch.device) -> Sequence[Pack]:
    """Those of the ladder that this torch can run on the device, by a trial.

    Raises ModelError where there is none, with what each of them said.
    """
    failures: list[str] = []
    found: list[Pack] = []
    for kind in _LADDER[bits]:
        if issubclass(kind, DynamicInt8) and device.type != "cpu":
            continue
        try:
            _try(kind, device)
        except _FAILURES as error:
            failures.append(f"{kind.__name__}: {(str(error) or repr(error)).splitlines()[0]}")
        else:
            found.append(kind)
    if found:
        return found
    raise ModelError(
        f"{bits} weights: torch {torch.__version__} has no kernel for them on {device.type} "
        f"({'; '.join(failures)}); take weights=same there{_INSTEAD.get(bits, '')}"
    )


_FAILURES = (
    RuntimeError, NotImplementedError, AttributeError, AssertionError, ValueError, TypeError,
    MissingExtraError,
)  # fmt: skip
_INSTEAD = {
    "int4": ", or weights=torchao_int4 with mmspec[quant]",
    "fp8": ", or weights=torchao_fp8 with mmspec[quant]",
}


def _try(kind: Pack, device: torch.device) -> None:
    """Raises what the kernel raises, or ValueError where it gives other numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = (_TRIED + 1, _TRIED)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32).to(device)
    weight, row = drawn[1:], drawn[:1]
    expected = row @ weight.T
    error = float((kind(weight)(row) - expected).norm() / expected.norm())
    if not error < _MOST_ERROR:
        raise ValueError(f"its product is off by {error:.2g}")


@contextmanager
def _engine(name: str | None) -> Iterator[None]:
    """Within it, weights are packed for that engine; a packed weight knows its own."""
    own = torch.backends.quantized.engine
    try:
        if name is not None:
            torch.backends.quantized.engine = name
        yield
    finally:
        torch.backends.quantized.engine = own


def _inner_tiles(ins: int) -> int:
    """Tiles of 16 inputs that CUDA's kernel takes at once: the most that divide them."""
    return next(tiles for tiles in (8, 4, 2) if ins % (16 * tiles) == 0)


def _row_scale(weight: Tensor) -> Tensor:
    """(out_features,) float32"""
    return (weight.float().abs().amax(dim=1) / 127).clamp(min=_ONE_SCALE)
