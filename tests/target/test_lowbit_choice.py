"""A low-bit weight's kernel: the first that works, or one that is clearly quicker."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmspec.errors import ModelError
from mmspec.target import lowbit, lowbit_choice
from mmspec.target.lowbit import DynamicInt8, OneDnnInt8, WeightInt8, packers
from mmspec.target.lowbit_choice import LowBitKernels, quickest

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kind_of(clock: Clock, seconds: list[float], *, fails: bool = False) -> Any:
    """A kernel whose calls take these seconds in turn."""

    class Kind:
        num_bytes = 0

        def __init__(self, weight: Tensor) -> None:
            self.calls = 0

        def __call__(self, states: Tensor) -> Tensor:
            if fails:
                raise RuntimeError("no such shape")
            clock.now += seconds[self.calls % len(seconds)]
            self.calls += 1
            return states

    return Kind


@pytest.mark.parametrize(
    "others, expected",
    [
        ([[1.0]], 0),
        ([[0.95]], 0),  # hardly quicker
        ([[0.5]], 1),
        ([[0.7], [0.5]], 2),
        ([[0.5, 9.0, 9.0]], 0),  # quick but for most of the time
        ([[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 9.0]], 1),
    ],
)
def test_another_is_taken_where_it_is_clearly_quicker(others: Any, expected: int) -> None:
    clock = Clock()
    kinds = [kind_of(clock, seconds) for seconds in ([1.0], *others)]
    assert quickest(kinds, torch.ones(4, 4), clock=clock) is kinds[expected]


def test_one_that_was_disturbed_all_but_once_is_not_left() -> None:
    """What the first one takes at its best counts: a busy machine changes nothing."""
    clock = Clock()
    first = kind_of(clock, [*[9.0] * 5, 1.0, 1.0, 9.0])
    assert quickest([first, kind_of(clock, [2.0])], torch.ones(4, 4), clock=clock) is first


def test_one_that_cannot_multiply_such_a_weight_is_left_out() -> None:
    clock = Clock()
    works, fails = kind_of(clock, [1.0]), kind_of(clock, [0.1], fails=True)
    assert quickest([works, fails], torch.ones(4, 4), clock=clock) is works
    assert quickest([fails, works], torch.ones(4, 4), clock=clock) is works


def test_a_shape_is_measured_once_and_a_small_one_never(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[torch.Size] = []

    def last(kinds: Any, weight: Tensor) -> Any:
        measured.append(weight.shape)
        return kinds[-1]

    monkeypatch.setattr(lowbit_choice, "quickest", last)
    monkeypatch.setitem(lowbit._LADDER, "int8", (DynamicInt8, WeightInt8))
    kernels = LowBitKernels("int8", CPU)
    large = [nn.Linear(256, 200), nn.Linear(256, 100)]
    assert kernels.pack_for([nn.Linear(16, 16)]) is DynamicInt8
    assert kernels.pack_for(large) is kernels.pack_for(large[::-1]) is WeightInt8
    assert kernels.pack_for([nn.Linear(256, 8_000)]) is WeightInt8
    assert measured == [(300, 256), (4_096, 256)]  # of a large one as much as tells


def test_onednn_multiplies_as_torchs_own_choice_does() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch here was built without oneDNN's quantised products")
    before = torch.backends.quantized.engine
    weight, rows = torch.randn(96, 128), torch.randn(2, 3, 128)
    own, other = (kind(weight)(rows) for kind in (DynamicInt8, OneDnnInt8))
    assert torch.backends.quantized.engine == before
    assert (own - other).norm() / own.norm() < 0.01
    assert (other - rows @ weight.T).norm() / own.norm() < 0.02


def test_an_engine_that_torch_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(DynamicInt8):
        engine = "none such"

    before = torch.backends.quantized.engine
    monkeypatch.setitem(lowbit._LADDER, "int8", (Missing, WeightInt8))
    assert packers("int8", CPU) == [WeightInt8]
    assert torch.backends.quantized.engine == before
    monkeypatch.setitem(lowbit._LADDER, "int8", (Missing,))
    with pytest.raises(ModelError, match=r"Missing.*weights=same"):
        packers("int8", CPU)
