"""Low-bit products beside full ones: a draft's weights in other precisions, by shape and rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspec.errors import ModelError
from mmspec.gpu_check.clock import Clock
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.target.lowbit import Bits, packer

Product = Callable[[Tensor], Tensor]
_KINDS: tuple[Bits, ...] = ("int8", "fp8", "int4", "torchao_int4", "torchao_fp8")
_MATRICES = ((14_336, 4096), (4096, 14_336), (128_256, 4096))  # (out, in) of an 8B
_ROWS = (1, 8, 32)
_COPIES = 6  # of a matrix, in turns: more than any cache holds


def product_table(setting: Setting, recorder: Recorder) -> list[dict[str, object]]:
    """One row a matrix, number of rows and kind: microseconds, error, bytes beside the full one's.

    Kinds that this machine has no kernel for are said once."""
    matrices = ((96, 128),) if setting.is_small else _MATRICES
    table: list[dict[str, object]] = []
    for outs, ins in matrices:
        copies = 1 if setting.is_small or outs > 2**16 else _COPIES
        weights = [
            torch.randn(outs, ins, device=setting.device, dtype=setting.dtype)
            for _ in range(copies)
        ]
        works: dict[str, list[Product]] = {"full": [partial(_full, weight) for weight in weights]}
        sizes = {"full": weights[0].nbytes}
        for kind in _KINDS:
            try:
                made = [packer(kind, setting.device)(weight) for weight in weights]
            except (ModelError, RuntimeError, ValueError) as error:
                recorder.missing(str(error))
                continue
            works[kind] = list(made)
            sizes[kind] = made[0].num_bytes
        for rows in _ROWS:
            table += _timed(setting, recorder, weights[0], works, sizes, rows)
    return table


def _timed(
    setting: Setting,
    recorder: Recorder,
    weight: Tensor,
    works: Mapping[str, Sequence[Product]],
    sizes: Mapping[str, int],
    rows: int,
) -> list[dict[str, object]]:
    outs, ins = weight.shape
    states = torch.randn(rows, ins, device=setting.device, dtype=setting.dtype)
    expected = states.float() @ weight.float().T
    clock = Clock(setting.device, rounds=3 if setting.is_small else 9, limit_s=1.0)
    copies = len(next(iter(works.values())))
    times = clock.medians_ms({kind: partial(_each, each, states) for kind, each in works.items()})
    found = []
    for kind, each in works.items():
        error = float((each[0](states).float() - expected).norm() / expected.norm())
        recorder.check(error < 0.3, f"{kind} product {outs} x {ins}: off by {error:.2g}")
        found.append(
            {
                "out": outs,
                "in": ins,
                "rows": rows,
                "kind": kind,
                "us": times[kind] / copies * 1e3,
                "error": error,
                "bytes": sizes[kind],
            }
        )
    return found


def _full(weight: Tensor, states: Tensor) -> Tensor:
    return F.linear(states, weight)


def _each(products: Sequence[Product], states: Tensor) -> None:
    for product in products:
        product(states)
