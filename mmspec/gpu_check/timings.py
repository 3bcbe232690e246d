"""Section `timings`: what the steps of large models cost. Random weights: timings, and no more."""

import statistics
from dataclasses import asdict, replace

from transformers import PreTrainedModel

from mmspec.bench.interval import spread
from mmspec.gpu_check.calls import draft_calls, score_call
from mmspec.gpu_check.clock import Clock, copy_bandwidth
from mmspec.gpu_check.low_bit import product_table
from mmspec.gpu_check.models import (
    filled_cache,
    loaded_model,
    step_bytes,
    stored_bytes,
    timed_shapes,
)
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.targets import GRAPH, OWN, check_replayed, timed_targets
from mmspec.plan.hardware import HARDWARE
from mmspec.plan.roofline import Forward
from mmspec.plan.shape import ModelShape
from mmspec.target import Target

NODES = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXTS = (4096, 32_768, 131_072)
_BAR_NODES = 64
_SMALL_NODES, _SMALL_CONTEXTS = (1, 4), (64, 256)
_LEAST_S = 20.0  # left of the whole check's time, for a context to be begun


def check(setting: Setting, recorder: Recorder) -> None:
    """Bandwidth, and for each shape scores and drafts; then low-bit products."""
    bandwidth = copy_bandwidth(setting.device, num_bytes=2**22 if setting.is_small else 2**32)
    recorder.found("what", "random weights: timings only")
    recorder.found("copy_bytes_per_s", bandwidth)
    for shape in timed_shapes(setting):
        if lacking := setting.lacks(seconds=_LEAST_S, num_bytes=stored_bytes(shape, 0)):
            recorder.missing(f"{shape.name}: {lacking}")
            continue
        with recorder.attempt(shape.name):
            _time_model(loaded_model(shape, setting), shape, setting, recorder, bandwidth)
        setting.free()
    if lacking := setting.lacks(seconds=_LEAST_S):
        recorder.missing(f"low-bit products: {lacking}")
        return
    with recorder.attempt("low-bit products"):
        recorder.found("low_bit", product_table(setting, recorder))


def _time_model(
    model: PreTrainedModel,
    shape: ModelShape,
    setting: Setting,
    recorder: Recorder,
    bandwidth: float,
) -> None:
    is_first = shape.name.startswith("llama-3-8b")
    targets = timed_targets(model, setting, recorder, ways=None if is_first else (GRAPH,))
    contexts = _SMALL_CONTEXTS if setting.is_small else CONTEXTS
    for context in contexts:
        name = f"{shape.name} at {context}"
        kv_bytes = 2 * shape.kv_values * shape.layers * context
        if lacking := setting.lacks(seconds=_LEAST_S, num_bytes=kv_bytes):
            recorder.missing(f"{name}: {lacking}")
            continue
        with recorder.attempt(name):
            recorder.found(name, _scores(targets, model, shape, setting, context, bandwidth))
        setting.free()
    drafting = contexts if setting.is_small else (131_072, 32_768) if is_first else ()
    for context in drafting:
        name = f"{shape.name} at {context}"
        if lacking := setting.lacks(seconds=_LEAST_S):
            recorder.missing(f"{name}, drafts: {lacking}")
            continue
        with recorder.attempt(f"{name}, drafts"):
            drafts = draft_calls(targets, shape, setting, context, recorder)
            recorder.found(f"{name}, drafts", drafts)
        setting.free()
    if GRAPH in targets:
        graphs = targets[GRAPH].graphs
        check_replayed(graphs.info if graphs else None, shape.name, setting, recorder)


def _scores(
    targets: dict[str, Target],
    model: PreTrainedModel,
    shape: ModelShape,
    setting: Setting,
    context: int,
    bandwidth: float,
) -> dict[str, object]:
    """Milliseconds of a score call by nodes, and how near a plain step is to the roofline."""
    nodes = _SMALL_NODES if setting.is_small else NODES
    clock = Clock(setting.device, rounds=3 if setting.is_small else 15)
    hardware = replace(HARDWARE["h200"], bytes_per_s=bandwidth)
    expected = Forward(shape, hardware)
    found: dict[str, object] = {
        "expected_ms": {n: expected.seconds(n, context=context, batch=1) * 1e3 for n in nodes}
    }
    roofline_ms = step_bytes(model, shape, context) / bandwidth * 1e3
    for way, target in targets.items():
        cache, placement = filled_cache(target, shape, context)
        own = (1, *nodes[-2:-1]) if way == OWN else nodes
        works = {str(n): score_call(target, cache, placement, n) for n in own}
        samples = {int(n): rounds for n, rounds in clock.samples_ms(works).items()}
        times = {n: statistics.median(rounds) for n, rounds in samples.items()}
        row = found[way] = {
            "score_ms": times,
            "ratio_to_one": {n: times[n] / times[1] for n in own},
            "roofline_share": roofline_ms / times[1],
        }
        if _BAR_NODES in samples:  # in the same round, one after the other
            pairs = zip(samples[_BAR_NODES], samples[1], strict=True)
            row["ratio_of_64"] = asdict(spread([many / one for many, one in pairs]))
        cache.release()
        target.free()
    return found
