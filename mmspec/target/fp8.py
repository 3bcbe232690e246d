"""One linear layer in 8-bit floating point on both sides, by torch's own scaled product."""

import torch
from torch import Tensor

_LARGEST = 448.0  # of float8_e4m3fn
_ONE_SCALE = 1e-8  # of a row of zeros: any will do, but 0


class ScaledFp8:
    """Weights and activations in float8_e4m3fn, each row with a scale; those of activations are
    found on the fly. Hopper and newer multiply such numbers; elsewhere torch says that it cannot.
    """

    def __init__(self, weight: Tensor) -> None:
        """Raises RuntimeError where torch has no such product on the weight's device."""
        self._packed, scale = _by_rows(weight)
        self._scale = scale.T.contiguous()  # (1, out_features)
        self._unit = torch.ones((), device=weight.device)
        self.num_bytes = self._packed.nbytes + self._scale.nbytes
        # Not every kernel takes a scale a row: then they are multiplied in afterwards.
        self._scales_rows = True
        try:
            self(weight.new_ones(1, weight.shape[1]))
        except (RuntimeError, ValueError):
            self._scales_rows = False

    def __call__(self, states: Tensor) -> Tensor:
        packed, scale = _by_rows(states.flatten(0, -2))
        if self._scales_rows:
            out = self._product(packed, scale, self._scale)
        else:
            out = self._product(packed, self._unit, self._unit) * scale * self._scale
        return out.to(states.dtype).view(*states.shape[:-1], -1)

    def _product(self, packed: Tensor, scale: Tensor, own_scale: Tensor) -> Tensor:
        """(rows, out_features) bfloat16"""
        return torch._scaled_mm(
            packed, self._packed.T, scale_a=scale, scale_b=own_scale, out_dtype=torch.bfloat16
        )


def _by_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) float8 and (rows, 1) float32, whose product is near `values`."""
    if values.dtype == torch.float64:
        values = values.float()
    largest = torch.linalg.vector_norm(values, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scale = largest.clamp_(min=_ONE_SCALE).mul_(1 / _LARGEST)
    # Past the largest number is NaN, not infinity: the quotient may round up to just above it.
    scaled = (values / scale).clamp_(-_LARGEST, _LARGEST)
    return scaled.to(torch.float8_e4m3fn), scale
