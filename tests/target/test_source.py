"""Copies of weights follow the weights: also those that come to lie where others were."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspec.target.linears import _QuickLinear
from mmspec.target.lowbit_layers import LowBitLayers
from mmspec.target.source import WeightSource


class Copied:
    """What a kernel packs: no fewer bits, a copy all the same."""

    num_bytes = 0

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.clone()

    def __call__(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight)


def exchanged(layer: nn.Linear, weight: Tensor) -> None:
    layer.weight = nn.Parameter(weight)


def refilled(layer: nn.Linear, weight: Tensor) -> None:
    layer.weight.data = weight


@pytest.mark.parametrize("change", [exchanged, refilled])
@pytest.mark.parametrize("kind", ["quick", "low_bit"])
def test_a_weight_where_another_was_is_not_taken_for_it(
    kind: str, change: Callable[[nn.Linear, Tensor], None]
) -> None:
    """As memory that was freed is given out again; here it is one array's."""
    if kind == "quick" and not torch.backends.mkldnn.is_available():
        pytest.skip("needs oneDNN")
    place = np.ones((64, 64), dtype=np.float32)
    layer, states = nn.Linear(64, 64, bias=False), torch.randn(4, 64)
    exchanged(layer, torch.from_numpy(place))
    quick = kind == "quick"
    forward = _QuickLinear(layer, packed=True) if quick else LowBitLayers([layer], Copied)
    before = layer.weight.data_ptr(), layer.weight._version
    with torch.no_grad():
        forward(states)
        place[:] = np.random.default_rng(0).normal(size=place.shape)
        change(layer, torch.from_numpy(place))
        assert (layer.weight.data_ptr(), layer.weight._version) == before
        torch.testing.assert_close(forward(states), layer(states), rtol=1e-4, atol=1e-4)


def test_a_source_keeps_no_memory() -> None:
    layer = nn.Linear(8, 8)
    source = WeightSource(layer.weight)
    storage = layer.weight.untyped_storage()
    assert source.is_still(layer.weight) and source.is_still(layer.weight.detach())
    del storage
    layer.weight.data = torch.zeros(8, 8)
    assert source._storage.expired() and not source.is_still(layer.weight)
