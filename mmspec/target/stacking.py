"""Weights that are read together, side by side in memory: one product instead of three.

Only for a model that mmspec has loaded itself. Its parameters stay what they are to whoever reads,
writes or saves them; what changes is where their memory lies.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class JointLayer(NamedTuple):
    """Several linear layers as one."""

    weight: Tensor  # (all out_features, in_features)
    bias: Tensor | None  # (all out_features,)


def stack_weights(model: PreTrainedModel) -> None:
    """Moves the weights and biases of plain linear layers that read the same states. Takes the
    memory of one such group more while it runs."""
    for module in model.get_decoder().modules():
        for names in TOGETHER:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if all(type(layer) is nn.Linear for layer in layers):
                _stack([layer.weight for layer in layers])
                _stack([layer.bias for layer in layers])


def joint_layer(layers: Sequence[nn.Linear]) -> JointLayer | None:
    """None for one layer, for layers whose weights are not side by side, and for any that is more
    than a plain one."""
    if len(layers) == 1 or any(
        type(layer) is not nn.Linear or "forward" in layer.__dict__ for layer in layers
    ):
        return None
    weight = _joint([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    bias = _joint(biases) if biases else None
    if weight is None or (biases and (bias is None or len(biases) < len(layers))):
        return None
    return JointLayer(weight, bias)


def _stack(parameters: Sequence[nn.Parameter | None]) -> None:
    some = [parameter for parameter in parameters if parameter is not None]
    if len(some) < len(parameters) or any(
        type(p) is not nn.Parameter
        or p.is_meta
        or (p.dtype, p.device, p.shape[1:]) != (some[0].dtype, some[0].device, some[0].shape[1:])
        for p in some
    ):
        return
    with torch.no_grad():
        joint = torch.cat([parameter.data for parameter in some])
        for parameter, part in zip(some, joint.split([p.shape[0] for p in some]), strict=True):
            parameter.data = part


def _joint(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor that the parts are cut from, one after the other."""
    first = parts[0]
    storage = first.untyped_storage().data_ptr()
    for before, after in pairwise(parts):
        if (
            after.data_ptr() != before.data_ptr() + before.nbytes
            or after.untyped_storage().data_ptr() != storage
            or after.dtype != first.dtype
            or after.shape[1:] != first.shape[1:]
            or not (before.is_contiguous() and after.is_contiguous())
        ):
            return None
    rows = sum(part.shape[0] for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
