"""Section `kernels`: every kernel beside its reference, on this device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from mmspec.attention.conformance import CASES, FAR, Case, build
from mmspec.attention.conformance import check as suite_check
from mmspec.gpu_check import chunk_cells, early_cells, kv_cells, noise_cells, nucleus_cells
from mmspec.gpu_check.backends import backends
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import GpuLost, Setting

_OTHER_DTYPES = (torch.float16, torch.float32)
_SMALL_CASE, _STEP = 2000, 3  # scores of a case of a small run; it has each third of them
_BY_KERNELS_ALONE = ("nucleus", "KV")
_ALLOWED_SHARE, _LEAST_LEFT_S = 0.5, 5.0  # of the time, a backend; and of all of it


@dataclass
class Tally:
    """One backend's calls."""

    passed: int = 0
    worst: float = 0.0  # error, as a share of softmax(q k) |v|
    declined: list[str] = field(default_factory=list)
    seconds: float = 0.0  # compiling included
    left_out: int = 0  # cases, for want of time

    def count(self, holds: bool, error: float) -> None:
        self.passed += holds
        self.worst = max(self.worst, error)


def check(setting: Setting, recorder: Recorder) -> None:
    """Noise, top-p, KV writes and commits, kernels that begin early, tree attention by each
    backend, a prompt's chunks."""
    parts = {
        "noise": noise_cells.check,
        "nucleus": nucleus_cells.check,
        "KV": kv_cells.check,
        "early begin": early_cells.check,
        "attention": _check_attention,
        "chunks": chunk_cells.check,
    }
    for what, own in parts.items():
        if what in _BY_KERNELS_ALONE and not setting.has_kernels:
            recorder.missing(f"{what}: its kernels need a GPU and triton")
            continue
        with recorder.attempt(what):
            own(setting, recorder)


def _check_attention(setting: Setting, recorder: Recorder) -> None:
    """By the suite of the backends. Kernels are compiled for each kind of call, which takes some
    backends seconds: one that has had its share of the time is left out of the other cases."""
    rungs = backends(setting, recorder)
    found = {rung.name: Tally() for rung in rungs}
    allowed_s = _ALLOWED_SHARE * setting.left_s
    for case, dtype in _cases(setting, recorder):
        inputs = build(case, dtype=dtype, device=setting.device)
        for rung in rungs:
            tally = found[rung.name]
            if tally.seconds > allowed_s or setting.left_s < _LEAST_LEFT_S:
                tally.left_out += 1
                continue
            begun = time.monotonic()
            recorder.doing(rung.name)
            outcome = suite_check(rung, case, dtype=dtype, device=setting.device, inputs=inputs)
            tally.seconds += time.monotonic() - begun
            what = f"{outcome.case}, {outcome.dtype}"
            if outcome.verdict == "declined":
                tally.declined.append(what)
                continue
            reason = outcome.reason or f"off by {outcome.error:.2g}"
            holds = outcome.verdict == "passed"
            if not holds and setting.is_lost:
                raise GpuLost(f"after attention by {rung.name}: {what}: {reason}")
            recorder.check(holds, f"attention by {rung.name}: {what}: {reason}")
            tally.count(holds, outcome.error or 0.0)
    recorder.doing(None)
    for name, tally in found.items():
        if tally.left_out:
            recorder.missing(f"attention by {name}: no time left for {tally.left_out} cases")
    recorder.found("attention", found)


def _cases(setting: Setting, recorder: Recorder) -> Iterator[tuple[Case, torch.dtype]]:
    """All in the dtype of models, then a share in the others; near ones of the list, which are
    alike, far from each other."""
    if setting.is_small:
        small = [case for case in CASES if case.size < _SMALL_CASE]
        yield from ((case, setting.dtype) for case in small[::_STEP])
        return
    spread = [case for first in range(_STEP) for case in CASES[first::_STEP]]
    if lacking := setting.lacks(num_bytes=10 * 2**30):  # two buffers of 4 GiB, and the reference
        recorder.missing(f"attention far into a buffer: {lacking}")
    else:
        spread.insert(0, FAR)
    yield from ((case, setting.dtype) for case in spread)
    for dtype in _OTHER_DTYPES:
        yield from ((case, dtype) for case in CASES[::_STEP])
