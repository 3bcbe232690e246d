"""The sections, by the names that they are chosen by, in the order in which they are run: what
other figures rest on first, then by worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmspec.errors import ConfigError
from mmspec.gpu_check import (
    attention,
    exactness,
    kernels,
    plain,
    reference,
    smoke,
    speed,
    timings,
)
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting


@dataclass(frozen=True)
class Section:
    """One thing that is checked or measured."""

    title: str
    check: Callable[[Setting, Recorder], None]
    share: float  # of the time for all of them
    is_extra: bool = False  # run where it is named


SECTIONS: dict[str, Section] = {
    "smoke": Section("the bundled model says what it says on the CPU", smoke.check, 0.08),
    "kernels": Section("kernels beside their references", kernels.check, 0.15),
    "plain": Section("plain decoding of an 8B, random weights: timings only", plain.check, 0.15),
    "timings": Section("steps of large models, random weights: timings only", timings.check, 0.25),
    "speed": Section("speed at real size with real acceptance", speed.check, 0.25),
    "exactness": Section("speculative texts beside plain ones", exactness.check, 0.15),
    "attention": Section("attention backends by shape", attention.check, 0.15),
    "compiled": Section(
        "plain decoding beside transformers' compiled generate", plain.check_compiled, 0.3, True
    ),
    "train": Section(
        "a reference target trained here, all methods on it", reference.check, 0.5, True
    ),
}


def shares_of(names: Sequence[str], *, trains: bool = False) -> dict[str, float]:
    """Of the time, by section: of those that `names` names, in their own order; none named: of all
    but the extra ones. With `trains` of `train`, too.
    Raises ConfigError for a name that is none."""
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ConfigError(f"section {unknown[0]!r}: expected some of {', '.join(SECTIONS)}")
    asked = names or [name for name, own in SECTIONS.items() if not own.is_extra]
    asked = [*asked, "train"] if trains else asked
    return {name: section.share for name, section in SECTIONS.items() if name in asked}
