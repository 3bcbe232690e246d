"""Section `kernels`: every kernel beside its reference, on this device."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmspec.attention.rung import Rung
from mmspec.gpu_check import kv_cells, noise_cells, tree_cells
from mmspec.gpu_check.backends import backends, conformance
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.tree_cells import Call, Cell

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_SMALL_CASE, _SMALL_CASES = 3000, 4  # scores of a case; cases of a small run


@dataclass
class Tally:
    """One backend's calls."""

    passed: int = 0
    worst: float = 0.0  # relative error
    declined: list[str] = field(default_factory=list)

    def count(self, holds: bool, error: float) -> None:
        self.passed += holds
        self.worst = max(self.worst, error)


def check(setting: Setting, recorder: Recorder) -> None:
    """Tree attention by each backend, KV writes and commits, noise."""
    for what, own in (("noise", _check_noise), ("KV", _check_kv), ("attention", _check_attention)):
        with recorder.attempt(what):
            own(setting, recorder)


def _check_attention(setting: Setting, recorder: Recorder) -> None:
    """By the backends' own suite where there is one, and by another reference in any case."""
    rungs = backends(recorder)
    suite = conformance()
    found: dict[str, Tally] = {rung.name: Tally() for rung in rungs}
    for case in _cases(suite, setting):
        for dtype in _DTYPES if setting.is_cuda else _DTYPES[-1:]:
            for rung in rungs:
                outcome = suite.check(rung, case, dtype=dtype, device=setting.device)
                what = f"{outcome.case}, {outcome.dtype}"
                if outcome.verdict == "declined":
                    found[rung.name].declined.append(what)
                    continue
                reason = outcome.reason or f"off by {outcome.error:.2g}"
                holds = outcome.verdict == "passed"
                recorder.check(holds, f"attention by {rung.name}: {what}: {reason}")
                found[rung.name].count(holds, outcome.error or 0.0)
    for cell in tree_cells.cells(setting):
        call = tree_cells.build(cell, setting.device)
        expected = tree_cells.reference(call)
        for rung in rungs:
            _check_cell(rung, cell, call, expected, found[rung.name], recorder)
    recorder.found("attention", found)


def _check_cell(
    rung: Rung, cell: Cell, call: Call, expected: list[Tensor], tally: Tally, recorder: Recorder
) -> None:
    what = f"attention by {rung.name}: {cell.text}"
    try:
        got = call.by(rung)
        if got is None:
            tally.declined.append(cell.text)
            return
        error = tree_cells.error(got, expected)
    except Exception as failure:  # a kernel that does not compile costs no other's check
        recorder.check(False, f"{what}: {type(failure).__name__}: {failure}")
        return
    bound = tree_cells.BOUNDS[cell.dtype]
    recorder.check(error <= bound, f"{what}: off by {error:.2g}, more than {bound:.0e}")
    tally.count(error <= bound, error)


def _cases(suite: Any, setting: Setting) -> list[Any]:
    if suite is None:
        return []
    if not setting.is_small:
        return list(suite.CASES)
    return [case for case in suite.CASES if case.size < _SMALL_CASE][:_SMALL_CASES]


def _check_kv(setting: Setting, recorder: Recorder) -> None:
    reason = kv_cells.why_not(setting)
    if reason is not None:
        recorder.missing(f"KV kernels: {reason}")
        return
    found = list(kv_cells.failures(setting))
    for what in found:
        recorder.check(False, what)
    recorder.found("kv", {"failures": len(found)})


def _check_noise(setting: Setting, recorder: Recorder) -> None:
    if not setting.is_cuda and not noise_cells.is_interpreted():
        recorder.missing("noise on a GPU: this is the CPU, compared with itself")
    found = noise_cells.compare(setting)
    recorder.found("noise", found)
    recorder.check(found.are_bits_equal, "noise: other random bits than on the CPU")
    recorder.check(
        found.share <= noise_cells.MOST_DIFFERING,
        f"noise: {found.share:.1e} of its values differ from the CPU's",
    )
    recorder.check(
        found.most_error <= noise_cells.MOST_ERROR,
        f"noise: a value is off from the CPU's by {found.most_error:.1e}",
    )
