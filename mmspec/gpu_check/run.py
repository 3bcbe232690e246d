"""Runs a section in this process: nothing that it found is lost where it fails."""

import importlib.metadata
import time
import traceback
from dataclasses import asdict
from pathlib import Path

import torch

from mmspec.bench.machine import this_machine
from mmspec.gpu_check.early_cells import why_not as why_no_early_begin
from mmspec.gpu_check.recorder import Recorder, SectionResult, plain, write_json
from mmspec.gpu_check.sections import Section
from mmspec.gpu_check.setting import EARLY_BEGIN, Setting

_PACKAGES = ("triton", "flash_attn", "flash_attn_4", "fa3_fwd", "torchao", "faiss", "accelerate")


def run_section(
    name: str, section: Section, setting: Setting, *, out: Path | None = None
) -> SectionResult:
    """What it finds. `out` is rewritten with every finding."""
    header, begun, result = _header(setting), time.monotonic(), SectionResult(section.title)

    def save() -> None:
        if out is not None:
            write_json(out, header, {name: plain(result)})

    always = None if why_no_early_begin(setting) else EARLY_BEGIN
    recorder = Recorder(result, save, always=always)
    try:
        with recorder.hearing():
            section.check(setting, recorder)
    except Exception as error:  # whatever it is, what was found is kept
        result.error = "".join(traceback.format_exception(error))
        result.status = "error"
    else:
        result.doing = None
        is_missing = result.missing and not result.found
        result.status = "failed" if result.failures else "missing" if is_missing else "passed"
    result.seconds = round(time.monotonic() - begun, 2)
    save()
    return result


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
