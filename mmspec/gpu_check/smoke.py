"""Section `smoke`: what is installed here, and whether the bundled model says on the device what it
says on the CPU."""

import warnings

import torch

from mmspec.attention.ladder import RUNGS
from mmspec.build import load
from mmspec.check.prompts import default_requests
from mmspec.gpu_check.enlarged import MODEL
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import check_replayed
from mmspec.target.load import load_model, load_processor, resolve_path

_DRAFTERS = ("none", "prompt_lookup", "compressed_kv")
_TOKENS = 24


def check(setting: Setting, recorder: Recorder) -> None:
    """In float32, whose rounding leaves the best token what it is: a text and a picture, plain and
    drafted, launch by launch and recorded."""
    here = {name: rung.missing() or "here" for name, rung in RUNGS.items()}
    recorder.found("attention backends", here)
    if setting.is_cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        recorder.found("device", str(properties))
        recorder.found("free bytes, of all", torch.cuda.mem_get_info(setting.device))
    # cuDNN rounds what convolutions are given to 10 bits, unless it is told not to.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        said = {place: _texts(place, setting, recorder) for place in ("cpu", str(setting.device))}
    expected = said["cpu"]
    for what, tokens in said[str(setting.device)].items():
        recorder.check(
            tokens == expected["none"],
            f"{what}: other tokens than on the CPU, from number {_first(tokens, expected['none'])}",
        )


def _texts(place: str, setting: Setting, recorder: Recorder) -> dict[str, list[tuple[int, ...]]]:
    """The tokens of each request, by drafter."""
    path = resolve_path(MODEL)
    model, processor = load_model(path, dtype="float32", device=place), load_processor(path)
    is_device = torch.device(place).type != "cpu"
    found = {}
    for name in _DRAFTERS if is_device else _DRAFTERS[:1]:
        view = ["drafter.compressed_kv.max_share=1.0", "drafter.compressed_kv.budget=64"]
        engine = load(model, processor, drafter=name, overrides=[*view, *setting.overrides])
        assert engine.inputs is not None
        requests = default_requests(engine.inputs)[:2]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            results = engine.generate(requests, temperature=0.0, max_new_tokens=_TOKENS, seed=0)
        found[name] = [result.tokens for result in results]
        for one in {str(warning.message) for warning in told} if is_device else ():
            recorder.missing(f"{name} warns: {one}")
        if is_device:
            check_replayed(engine.graph_info, name, setting, recorder)
    return found


def _first(tokens: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> list[int]:
    """By text, where they part."""
    return [
        next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), len(own))
        for own, other in zip(tokens, expected, strict=True)
    ]
