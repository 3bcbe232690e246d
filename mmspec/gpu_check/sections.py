"""The sections, by the names that they are chosen by, in the order in which they are run."""

from collections.abc import Callable
from dataclasses import dataclass

from mmspec.gpu_check import attention, exactness, kernels, reference, speed, timings
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting


@dataclass(frozen=True)
class Section:
    """One thing that is checked or measured."""

    title: str
    check: Callable[[Setting, Recorder], None]
    share: float  # of the time for all of them


SECTIONS: dict[str, Section] = {
    "kernels": Section("kernels beside their references", kernels.check, 0.2),
    "exactness": Section("speculative texts beside plain ones", exactness.check, 0.2),
    "timings": Section("steps of large models, random weights: timings only", timings.check, 0.3),
    "attention": Section("attention backends by shape", attention.check, 0.15),
    "speed": Section("speed at real size with real acceptance", speed.check, 0.2),
    "train": Section("a reference target trained here, all methods on it", reference.check, 0.5),
}
