"""Section `kernels`: every kernel beside its reference, on this device."""

from dataclasses import dataclass, field

import torch

from mmspec.attention.conformance import CASES, FAR, Case, build
from mmspec.attention.conformance import check as suite_check
from mmspec.gpu_check import kv_cells, noise_cells
from mmspec.gpu_check.backends import backends
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_SMALL_CASE, _SMALL_STEP = 2000, 3  # scores of a case of a small run; it has each third of them


@dataclass
class Tally:
    """One backend's calls."""

    passed: int = 0
    worst: float = 0.0  # error, as a share of softmax(q k) |v|
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
    """By the suite of the backends."""
    rungs = backends(recorder)
    found = {rung.name: Tally() for rung in rungs}
    for case in _cases(setting, recorder):
        for dtype in _DTYPES if setting.is_cuda else _DTYPES[-1:]:
            if case.before and dtype.itemsize > 2:
                continue
            inputs = build(case, dtype=dtype, device=setting.device)
            for rung in rungs:
                outcome = suite_check(rung, case, dtype=dtype, device=setting.device, inputs=inputs)
                what = f"{outcome.case}, {outcome.dtype}"
                if outcome.verdict == "declined":
                    found[rung.name].declined.append(what)
                    continue
                reason = outcome.reason or f"off by {outcome.error:.2g}"
                holds = outcome.verdict == "passed"
                recorder.check(holds, f"attention by {rung.name}: {what}: {reason}")
                found[rung.name].count(holds, outcome.error or 0.0)
    recorder.found("attention", found)


def _cases(setting: Setting, recorder: Recorder) -> list[Case]:
    if setting.is_small:
        return [case for case in CASES if case.size < _SMALL_CASE][::_SMALL_STEP]
    if not setting.is_cuda or not setting.has_memory(10 * 2**30):
        recorder.missing("attention far into a buffer: no room for buffers of 4 GiB")
        return list(CASES)
    return [*CASES, FAR]


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
