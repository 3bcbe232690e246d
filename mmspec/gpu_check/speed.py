"""Section `speed`: methods beside our own plain decoding, on a trained model enlarged to 8B."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace

from transformers import PreTrainedModel

from mmspec.bench.interval import spread
from mmspec.bench.methods import PLAIN, Method, standard_methods
from mmspec.bench.ours import Ours
from mmspec.bench.run import Measurements, Runner, measure
from mmspec.bench.suites import Task, bundled_tasks
from mmspec.bench.timeline import Run
from mmspec.build import build_engine
from mmspec.build_drafters import build_drafters
from mmspec.build_target import probed_target
from mmspec.config import load_config
from mmspec.engine import Engine
from mmspec.gpu_check.enlarged import MODEL, enlarged_model, enlarged_shape
from mmspec.gpu_check.models import stored_bytes
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.replay import replayed
from mmspec.gpu_check.setting import Setting
from mmspec.target.load import load_processor, resolve_path
from mmspec.target.stacking import stack_weights

_ORDER = ("quoting, 1k", "open-ended", "transcribing", "describing", "quoting")
_TOKENS = 96  # of each text
_WARM_UPS, _PAIRS = 2, 7  # fewer give no interval of 95%
_DRAFTERS = ("prompt_lookup", "retrieval", "compressed_kv", "cascade")


def check(setting: Setting, recorder: Recorder) -> None:
    """Copying and open-ended tasks; then long contexts, with replayed acceptance."""
    if lacking := setting.lacks(num_bytes=stored_bytes(enlarged_shape(setting), 8192)):
        recorder.missing(f"the enlarged model: {lacking}")
        return
    model = enlarged_model(setting, recorder)
    stack_weights(model)  # as in a model that mmspec has loaded
    engines = _engines(model, setting)
    runners: dict[str, Runner] = {name: Ours(*made) for name, made in engines.items()}
    inputs = engines[PLAIN][1].inputs
    assert inputs is not None
    for task in _tasks(setting):
        if lacking := setting.lacks(seconds=60):
            recorder.missing(f"{task.name}: {lacking}")
            continue
        with recorder.attempt(task.name):
            # Graphs are recorded in those before the last: one takes as long as a text does.
            for pairs in (1,) if setting.is_small else (_WARM_UPS, _PAIRS):
                (measured,) = measure(
                    [task], runners, inputs, plain=runners[PLAIN], pairs=pairs, room=8000
                )
            recorder.found(task.name, ratios(measured))
    with recorder.attempt("replay"):
        replayed(model, setting, recorder)


def _engines(model: PreTrainedModel, setting: Setting) -> dict[str, tuple[Method, Engine]]:
    processor = load_processor(resolve_path(MODEL))
    drafters = _DRAFTERS[:1] if setting.is_small else _DRAFTERS
    methods = standard_methods(drafters, peers=False)
    target = probed_target(
        model, load_config(None, setting.overrides).decode
    )  # one for all, and its graphs
    return {
        method.name: (
            method,
            build_engine(
                config := load_config(None, [*method.overrides, *setting.overrides]),
                model,
                processor,
                build_drafters(config.drafter),
                probed=target,
            ),
        )
        for method in methods
    }


def _tasks(setting: Setting) -> Sequence[Task]:
    tasks = {task.name: task for task in bundled_tasks(1)}
    if setting.is_small:
        return [replace(tasks["quoting, 1k"], max_new_tokens=8)]
    ordered = dict.fromkeys(name for kind in _ORDER for name in tasks if name.startswith(kind))
    return [
        replace(tasks[name], max_new_tokens=min(tasks[name].max_new_tokens, _TOKENS))
        for name in ordered
    ]


def ratios(measured: Measurements) -> dict[str, dict[str, object]]:
    """Speed a token beside plain decoding in the same pair, median over pairs."""
    plain = measured.runs[PLAIN]
    found: dict[str, dict[str, object]] = {}
    for name, pairs in measured.runs.items():
        values = [
            _ms_a_token(theirs) / _ms_a_token(ours)
            for mine, others in zip(pairs, plain, strict=True)
            for ours, theirs in zip(mine, others, strict=True)
            if ours.num_decoded and theirs.num_decoded
        ]
        runs = [run for pair in pairs for run in pair]
        found[name] = {
            "ratio": statistics.median(values) if values else None,
            "spread": asdict(spread(values)) if values else None,
            "ms_a_token": statistics.median(map(_ms_a_token, runs)),
            "tokens_a_step": sum(r.num_decoded for r in runs)
            / max(sum(r.verifications for r in runs), 1),
            "is_plain_text": all(
                run.tokens == other.tokens
                for pair, others in zip(pairs, plain, strict=True)
                for run, other in zip(pair, others, strict=True)
            ),
        }
    return found


def _ms_a_token(run: Run) -> float:
    return run.decode.wall_s * 1e3 / max(run.num_decoded, 1)
