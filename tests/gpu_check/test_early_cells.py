"""The check of kernels that begin early, where they cannot: what differs is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from interpreted import DEVICE

pytest.importorskip("triton")

from mmspec.attention.kernels import early
from mmspec.gpu_check import early_cells
from mmspec.gpu_check.recorder import Recorder, SectionResult
from mmspec.gpu_check.setting import Setting
from mmspec.target import triton_kit
from mmspec.target.kernels import norm, skinny


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels begin one after the other, whatever they are told; one layer."""
    for module in (early, norm, skinny):
        monkeypatch.setattr(module, "launch_options", lambda is_early, **_: {"IS_EARLY": False})
    sizes = {"LAYERS": 1, "HIDDEN": 512, "INTERMEDIATE": 64, "COMMITTED": 40, "ROUNDS": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(early_cells, f"_{name}", value)
    case = early_cells.Case
    monkeypatch.setattr(early_cells, "Case", lambda *of, kv_heads: case(*of, kv_heads=1))
    monkeypatch.setattr(early_cells, "_COUNTS", (2,))
    monkeypatch.setattr(early_cells, "why_not", lambda setting: None)

    def clock(run: Callable[[], object], device: object) -> float:
        run()
        return 1.0

    monkeypatch.setattr(triton_kit, "replayed_ms", clock)


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_other_bits_are_told(small: None, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = skinny.multiply

    def wrong(*args: Any, is_early: bool) -> torch.Tensor:
        return multiply(*args) + error * is_early

    monkeypatch.setattr(skinny, "multiply", wrong)
    result = SectionResult("early")
    early_cells.check(Setting(torch.device(DEVICE)), Recorder(result, lambda: None))
    assert result.failures == (
        ["early begin: 2 rows: other bits", "early begin: 2 rows: other bits in a graph"]
        if error
        else []
    )
    assert result.found["early"] == [early_cells.EarlyRow(2, *[1000.0] * 2)]
