"""Section `plain`: our plain decoding beside the memory's speed, and beside transformers' own
generate with its best settings, on a load that mmspec never touches."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from transformers import PreTrainedModel

from mmspec.bench.interval import spread
from mmspec.bench.methods import PLAIN, TRANSFORMERS, Method
from mmspec.bench.ours import Ours
from mmspec.bench.peers import Peer
from mmspec.bench.run import Runner
from mmspec.bench.timeline import Run
from mmspec.build import load
from mmspec.engine import Engine
from mmspec.gpu_check import prefill
from mmspec.gpu_check.bars import LARGE
from mmspec.gpu_check.clock import copy_bandwidth
from mmspec.gpu_check.models import loaded_model, random_model, small, step_bytes, stored_bytes
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import check_replayed
from mmspec.plan.shape import SHAPES, ModelShape
from mmspec.state import Prompt

_PAIRS = 7  # fewer give no interval of 95%
_PROMPT, _TOKENS = 4096, 64
_PREFILL_S = 40.0  # of two models, some ten times each
EAGER, STATIC = "eager, dynamic cache", "compiled, static cache"
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    EAGER: {},
    STATIC: {"cache_implementation": "static"},
}


def check(setting: Setting, recorder: Recorder) -> None:
    """At 4k tokens of an 8B with random weights: timings, and no more."""
    if _has_room(setting, recorder):
        _check(setting, recorder, EAGER)


def check_compiled(setting: Setting, recorder: Recorder) -> None:
    """The same beside a generate that takes minutes to compile."""
    if setting.is_small:
        recorder.missing(f"transformers, {STATIC}: not compiled for a small run")
    elif _has_room(setting, recorder):
        _check(setting, recorder, STATIC)


def _has_room(setting: Setting, recorder: Recorder) -> bool:
    lacking = setting.lacks(num_bytes=2 * stored_bytes(_shape(setting), _PROMPT))
    if lacking:
        recorder.missing(f"two models: {lacking}")
    return not lacking


def _shape(setting: Setting) -> ModelShape:
    return small(SHAPES[LARGE]) if setting.is_small else SHAPES[LARGE]


def _check(setting: Setting, recorder: Recorder, way: str) -> None:
    shape = _shape(setting)
    prompt_tokens, tokens = (32, 8) if setting.is_small else (_PROMPT, _TOKENS)
    bandwidth = copy_bandwidth(setting.device, num_bytes=2**22 if setting.is_small else 2**32)
    model = loaded_model(shape, setting)
    engine = load(model, drafter="none", overrides=setting.overrides)
    context = prompt_tokens + tokens // 2
    roofline_ms = step_bytes(model, shape, context) / bandwidth * 1e3
    recorder.found("what", "random weights: timings only")
    recorder.found("copy_bytes_per_s", bandwidth)
    recorder.found("roofline_ms", roofline_ms)
    prompt = Prompt(torch.randint(10, 200, (prompt_tokens,)))
    method = Method(PLAIN, "mmspec", (), {"speculate": False})
    ours = Ours(method, engine)
    own = [_ms_a_token(ours.run(prompt, tokens)) for _ in range(2 + _PAIRS)][2:]
    recorder.found("ms_a_token", statistics.median(own))
    recorder.found("roofline_share", asdict(spread([roofline_ms / ms for ms in own])))
    waiting = Ours(method, Engine(engine.target, None, overlap="never"))
    turns = _in_turns((ours, waiting), prompt, tokens)
    recorder.found("overlap", asdict(spread([late / early for early, late in turns])))
    check_replayed(engine.graph_info, "plain", setting, recorder)
    untouched = random_model(shape, setting)
    with recorder.attempt(f"transformers, {way}"):
        _compare(ours, untouched, prompt, tokens, way, recorder)
    if way == EAGER and (lacking := setting.lacks(seconds=_PREFILL_S)):
        recorder.missing(f"prefill: {lacking}")
    elif way == EAGER:
        with recorder.attempt("prefill"):
            recorder.found("prefill", prefill.compared(engine.target, untouched, setting))


def _compare(
    ours: Runner,
    untouched: PreTrainedModel,
    prompt: Prompt,
    tokens: int,
    way: str,
    recorder: Recorder,
) -> None:
    peer = Peer(Method(TRANSFORMERS, "transformers", (), _OPTIONS[way]), untouched, {})
    for _ in range(2):  # compiles
        peer.run(prompt, tokens)
    pairs = _in_turns((ours, peer), prompt, tokens)
    recorder.found(f"ms a token, {way}", statistics.median(ms for _, ms in pairs))
    recorder.found(f"speed beside {way}", asdict(spread([theirs / own for own, theirs in pairs])))


def _in_turns(runners: Sequence[Runner], prompt: Prompt, tokens: int) -> list[tuple[float, float]]:
    """Milliseconds a token of both, by pair, each beginning with the other one."""
    pairs = []
    for pair in range(_PAIRS):
        order = (0, 1) if pair % 2 else (1, 0)
        times = {index: _ms_a_token(runners[index].run(prompt, tokens)) for index in order}
        pairs.append((times[0], times[1]))
    return pairs


def _ms_a_token(run: Run) -> float:
    """Of the tokens after the first one, which is the prefill's."""
    return run.decode.wall_s * 1e3 / max(run.num_decoded, 1)
