"""Section `train`: a reference target, a draft model and heads for it, trained here; all methods on
it."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmspec.bench.lineup import build_lineup
from mmspec.bench.methods import PLAIN, Method, standard_methods
from mmspec.bench.run import measure
from mmspec.bench.suites import Task, bundled_tasks
from mmspec.build_drafters import DRAFTERS
from mmspec.errors import MmspecError
from mmspec.gpu_check.heads import HEADS, train_heads
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.gpu_check.speed import ratios
from mmspec.training.tiny.train import Settings, State, export, train

_SHARES = {
    "target": 0.4,
    "draft": 0.1,
    "heads": 0.25,
}  # of the time that is left; the rest measures
_SIZES = {"target": "100m", "draft": "nano"}
_PAIRS = 7


@dataclass(frozen=True)
class Trained:
    """One model's training."""

    size: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    errors: dict[str, float]  # task -> share of wrong answer tokens, of the last steps


def check(setting: Setting, recorder: Recorder) -> None:
    """Trains within the time that is left, then measures."""
    left_s = setting.left_s
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, size in _SIZES.items():
            size = "nano" if setting.is_small else size
            seconds = 1.0 if setting.is_small else left_s * _SHARES[part]
            recorder.found(part, _trained(folder / part, size, seconds, setting))
        heads = train_heads(
            folder / "target",
            folder / "heads",
            seconds=left_s * _SHARES["heads"],
            setting=setting,
            recorder=recorder,
        )
        _measure(folder, dict(heads), setting, recorder)


def _trained(folder: Path, size: str, seconds: float, setting: Setting) -> Trained:
    settings = Settings(
        folder.with_suffix(".pt"),
        minutes=seconds / 60,
        size=size,
        device=str(setting.device),
        checkpoint_every_s=1e9,
    )
    begun, errors, report = time.monotonic(), dict[str, float](), None
    for report in train(settings):
        for task, error in report.errors.items():
            errors[task] = 0.95 * errors.get(task, error) + 0.05 * error
    assert report is not None
    state = State.fresh(settings)
    state.load(settings.checkpoint)
    export(state.average.eval(), folder)
    return Trained(
        size,
        sum(parameter.numel() for parameter in state.average.parameters()),
        report.step,
        report.tokens,
        round(time.monotonic() - begun, 1),
        errors,
    )


def _measure(folder: Path, heads: Mapping[str, str], setting: Setting, recorder: Recorder) -> None:
    """`heads`: by name, the override that uses one."""
    draft = f"drafter.draft_model.path={folder / 'draft'}"
    drafters = ["prompt_lookup"] if setting.is_small else [n for n in DRAFTERS if n not in HEADS]
    methods = [
        Method(m.name, m.library, (*m.overrides, draft), m.options) if m.library == "mmspec" else m
        for m in standard_methods(drafters, peers=not setting.is_small)
    ]
    for name, override in heads.items():
        drafter = override.split(".")[1]
        methods.append(Method(f"mmspec {name}", "mmspec", (f"drafter.name={drafter}", override)))
    lineup = build_lineup(
        str(folder / "target"),
        methods,
        overrides=setting.overrides,
        dtype=str(setting.dtype).removeprefix("torch."),
        device=str(setting.device),
        is_required=lambda method: method.name == PLAIN,
    )
    for name, why in lineup.refused.items():
        recorder.missing(f"{name}: {why}")
    for task in _tasks(setting):
        if lacking := setting.lacks(seconds=20):
            recorder.missing(f"{task.name}: {lacking}")
            continue
        try:
            measured = measure(
                [task],
                lineup.runners,
                lineup.inputs,
                plain=lineup.plain,
                pairs=1 if setting.is_small else _PAIRS,
                room=lineup.max_positions or 8192,
            )
        except MmspecError as error:
            recorder.missing(f"{task.name}: {error}")
            continue
        recorder.found(task.name, ratios(measured[0]))


def _tasks(setting: Setting) -> list[Task]:
    tasks = bundled_tasks(1)
    if setting.is_small:
        return [Task(tasks[1].name, tasks[1].questions, 6)]
    return [Task(task.name, task.questions, min(task.max_new_tokens, 200)) for task in tasks]
