"""Kernels that begin before the one ahead has ended, beside the same in a row: the same bits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mmspec.attention.conformance import Case, build
from mmspec.attention.triton_tree import TritonTree
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import EARLY_BEGIN, Setting

_LAYERS, _HIDDEN, _INTERMEDIATE, _COMMITTED = 8, 4096, 14_336, 4000
_COUNTS = (1, 5, 40)
_ROUNDS = 20


@dataclass(frozen=True)
class EarlyRow:
    rows: int
    in_a_row_us: float
    early_us: float


def why_not(setting: Setting) -> str | None:
    """Why they cannot be run here; None: they can."""
    if not setting.is_cuda:
        return "there is no GPU"
    if EARLY_BEGIN in setting.without:
        return "an earlier try did not survive it"
    if not setting.has_kernels:
        return "needs triton"
    from mmspec.attention.kernels.early import can_begin_early

    return None if can_begin_early(setting.device) else "this GPU knows no early begin"


def check(setting: Setting, recorder: Recorder) -> None:
    """The second halves of some blocks with attention ahead, at an 8B's sizes."""
    reason = why_not(setting)
    if reason is not None:
        recorder.missing(f"early begin of kernels: {reason}")
        return
    from mmspec.target.triton_kit import replayed_ms

    rows: list[EarlyRow] = []
    shape = (_INTERMEDIATE, _HIDDEN)
    weights = [
        [_drawn(setting, *size) for size in (shape, shape, shape[::-1])] for _ in range(_LAYERS)
    ]
    for count in _COUNTS:
        states = 64 * _drawn(setting, 1, count, _HIDDEN)
        case = Case((_COMMITTED,), (count,), kv_heads=8)
        attended = _attention(case, setting)
        times, found = [], []
        for is_early in (False, True):
            made: list[Tensor] = []
            run = partial(_run, states, weights, attended, made, is_early=is_early)
            with torch.no_grad():
                times.append(1000 * replayed_ms(run, setting.device) / _LAYERS)
                found.append([tensor.clone() for tensor in made])
                are_equal = True
                for _ in range(_ROUNDS):
                    run()
                    are_equal = are_equal and all(map(torch.equal, found[0], made))
            recorder.check(are_equal, f"early begin: {count} rows: other bits")
        is_equal = all(map(torch.equal, *found))
        recorder.check(is_equal, f"early begin: {count} rows: other bits in a graph")
        rows.append(EarlyRow(count, *times))
        recorder.found("early", rows)


def _run(
    states: Tensor,
    weights: list[list[Tensor]],
    attended: Callable[[bool], Tensor],
    made: list[Tensor],
    *,
    is_early: bool,
) -> None:
    from mmspec.target.kernels.norm import add_norm
    from mmspec.target.kernels.skinny import Tiling, multiply, multiply_gated

    count = states.shape[1]
    tiling = Tiling(16, 256, 4 if count == 1 else 2, 4) if count <= 16 else Tiling(32, 128, 4, 4)
    scale, added = states[0, 0], None
    made.clear()
    for gate, up, down in weights:
        made.append(attended(is_early))
        added = made[-1].view(states.shape) if added is None else added
        states, normed = add_norm(states, added, scale, epsilon=1e-5, is_early=is_early)
        product = multiply_gated(
            normed[0], gate, up, tiling=tiling, activation="silu", is_early=is_early
        )
        added = multiply(product, [down], None, tiling, is_early=is_early)[None]
        made.append(added)


def _attention(case: Case, setting: Setting) -> Callable[[bool], Tensor]:
    own = build(case, dtype=torch.bfloat16, device=setting.device)
    calls = [replace(own.call, is_early=is_early) for is_early in (False, True)]
    for call in calls:
        call.tensors(setting.device)  # before a graph is recorded

    def attended(is_early: bool) -> Tensor:
        rung = TritonTree()
        return rung.attend(own.query, own.keys, own.values, call=calls[is_early], rule=own.rule)

    return attended


def _drawn(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device, dtype=torch.bfloat16) / 64
