"""One linear layer as torchao packs and multiplies it (extra `quant`)."""

from typing import Any

import torch
from torch import Tensor, nn

from mmspec.errors import MissingExtraError

_GROUP = 32  # as for mmspec's own int4


class TorchaoInt4:
    """Four bits of weight, a scale and a zero point a group of inputs; activations in bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        """Raises MissingExtraError without torchao; what torchao raises where it cannot."""
        self._layer, self.num_bytes = _packed(weight, self._config(weight.device))

    def __call__(self, rows: Tensor) -> Tensor:
        return self._layer(rows.bfloat16()).to(rows.dtype)

    def _config(self, device: torch.device) -> Any:
        kind = _torchao().Int4WeightOnlyConfig
        # The one form that needs nothing beyond torch's kernels.
        return kind(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")


class TorchaoFp8(TorchaoInt4):
    """Weights and activations in float8_e4m3fn with a scale a row, on Hopper and newer; elsewhere
    the weights alone."""

    def _config(self, device: torch.device) -> Any:
        torchao = _torchao()
        if device.type == "cuda":
            return torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
        return torchao.Float8WeightOnlyConfig()


def _packed(weight: Tensor, config: Any) -> tuple[nn.Linear, int]:
    """A layer without a bias, and the bytes of its weight. The weight given stays what it is."""
    outs, ins = weight.shape
    layer = nn.Linear(ins, outs, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(torch.bfloat16, copy=True), requires_grad=False)
    _torchao().quantize_(layer, config)
    packed: Any = layer.weight
    if type(packed) is nn.Parameter:  # a shape that torchao does not take is left, with a warning
        raise ValueError(f"torchao leaves a weight of {outs} x {ins} as it is")
    names = [*packed.tensor_data_names, *getattr(packed, "optional_tensor_data_names", [])]
    parts = [getattr(packed, name) for name in names]
    return layer, sum(part.nbytes for part in parts if part is not None)


def _torchao() -> Any:
    try:
        import torchao.quantization as quantization
    except ImportError as error:
        raise MissingExtraError("torchao is not installed: pip install mmspec[quant]") from error
    return quantization
