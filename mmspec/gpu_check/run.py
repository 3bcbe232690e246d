"""Runs sections in this process: one that fails costs no other, and nothing that was found."""

import importlib.metadata
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmspec.bench.machine import this_machine
from mmspec.errors import ConfigError
from mmspec.gpu_check.bars import verdicts
from mmspec.gpu_check.early_cells import why_not as why_no_early_begin
from mmspec.gpu_check.recorder import Recorder, SectionResult, plain, write_json
from mmspec.gpu_check.sections import SECTIONS, Section
from mmspec.gpu_check.setting import EARLY_BEGIN, Setting

_PACKAGES = ("triton", "flash_attn", "flash_attn_4", "fa3_fwd", "torchao", "faiss", "accelerate")
_NOTHING: Mapping[str, object] = {}
_LEAST_S = 5.0  # a section is not begun with less time left


def run_sections(
    setting: Setting,
    names: Sequence[str] = (),
    *,
    out: Path | None = None,
    kept: Mapping[str, object] = _NOTHING,
    sections: Mapping[str, Section] = SECTIONS,
    progress: Callable[[str, SectionResult], None] = lambda name, result: None,
) -> dict[str, SectionResult]:
    """The sections of `chosen_sections`. `out` is
    rewritten with every finding, `kept` (sections of an earlier run) among them; `progress` is told
    of each section at its beginning and end.

    All are run by this process: a kernel that reads beyond its memory ends its use of the GPU, and
    the sections behind are "lost" (`Conductor` gives each a process of its own).

    Raises ConfigError for a name that is none.
    """
    chosen = list(chosen_sections(names, trains=setting.trains, sections=sections))
    header = _header(setting)
    results: dict[str, SectionResult] = {}

    def save() -> None:
        if out is not None:
            read: dict[str, Any] = {
                **kept,
                **{name: plain(result) for name, result in results.items()},
            }
            told = {} if setting.is_small else {"bars": list(verdicts(read))}
            write_json(out, {**header, **told}, read)

    for place, name in enumerate(chosen):
        section = sections[name]
        result = results[name] = SectionResult(section.title)
        progress(name, result)
        begun = time.monotonic()
        if setting.is_lost:
            result.status = "lost"
        elif setting.left_s < _LEAST_S:
            result.status = "left out"
            result.missing.append(f"the {setting.minutes:g} minutes were used up")
        else:
            ahead = sum(sections[other].share for other in chosen[place:])
            own = setting.within(setting.left_s * section.share / ahead)
            always = None if why_no_early_begin(setting) else EARLY_BEGIN
            _run_one(section, own, Recorder(result, save, always=always))
        result.seconds = round(time.monotonic() - begun, 2)
        save()
        progress(name, result)
        if not setting.is_lost:
            setting.free()
    return results


def chosen_sections(
    names: Sequence[str], *, trains: bool, sections: Mapping[str, Section] = SECTIONS
) -> dict[str, Section]:
    """Those that `names` names, in their own order; none named: all but the extra ones, with
    `trains` those too.
    Raises ConfigError for a name that is none."""
    unknown = [name for name in names if name not in sections]
    if unknown:
        raise ConfigError(f"section {unknown[0]!r}: expected some of {', '.join(sections)}")
    asked = names or [name for name, own in sections.items() if trains or not own.is_extra]
    return {name: section for name, section in sections.items() if name in asked}


def _run_one(section: Section, setting: Setting, recorder: Recorder) -> None:
    result = recorder.result
    try:
        with recorder.hearing():
            section.check(setting, recorder)
    except Exception as error:  # whatever it is, the other sections are run
        result.error = "".join(traceback.format_exception(error))
        result.status = "error"
        return
    result.doing = None
    if result.failures:
        result.status = "failed"
    elif result.missing and not result.found:
        result.status = "missing"
    else:
        result.status = "passed"


def _header(setting: Setting) -> dict[str, object]:
    machine = asdict(this_machine(threads=torch.get_num_threads()))
    is_cuda = setting.is_cuda
    return {
        "what": "mmspec gpu_check",
        "begun": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": str(setting.device),
        "gpu": torch.cuda.get_device_name(setting.device) if is_cuda else None,
        "capability": torch.cuda.get_device_capability(setting.device) if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        "is_small": setting.is_small,
        "machine": machine,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    for name in (package, package.replace("_", "-"), f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
