"""Heads for the reference target, trained within their share of the time."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mmspec.build import load
from mmspec.errors import MmspecError
from mmspec.gpu_check.recorder import Recorder
from mmspec.gpu_check.setting import Setting
from mmspec.training.heads import Unwatched, train_head
from mmspec.training.heads.loop import Report
from mmspec.training.heads.train_head import Trained
from mmspec.training.tiny.data import TASKS

HEADS = {"medusa": "medusa", "eagle": "eagle2", "eagle3": "eagle3", "glide": "glide"}
# What the measured tasks ask for, pictures seldom: their prompts are read one by one.
_MIX = ("quote", "quote", "story", "story", "span", "receipt")
_NUM_SAMPLES = 1200
_NUM_SMALL = 4


@dataclass(frozen=True)
class HeadTraining:
    """One head's training."""

    parameters: int
    steps: int
    tokens: int
    seconds: float
    loss_first: float
    loss_last: float
    held_out_top_1: list[float]  # by depth
    held_out_tokens_a_step: float


class _Losses(Unwatched):
    """The first and the newest loss."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = float("nan")

    def on_report(self, report: Report) -> None:
        if report.losses:
            self.last = report.losses["loss"]
            self.first = self.last if self.first is None else self.first


def train_heads(
    target: Path, folder: Path, *, seconds: float, setting: Setting, recorder: Recorder
) -> Iterator[tuple[str, str]]:
    """Trains each kind for its part of `seconds`, records what became of it, and yields (its name,
    the override that uses it)."""
    data = write_data(folder, _NUM_SMALL if setting.is_small else _NUM_SAMPLES)
    engine = load(
        str(target),
        dtype=str(setting.dtype).removeprefix("torch."),
        device=str(setting.device),
        drafter="none",
        overrides=setting.overrides,
    )
    for name, kind in HEADS.items():
        losses, begun = _Losses(), time.monotonic()
        try:
            trained = train_head(
                engine,
                str(data),
                head=kind,
                out=folder / name,
                steps=2 if setting.is_small else None,
                minutes=None if setting.is_small else seconds / len(HEADS) / 60,
                overrides=_settings(setting),
                watcher=losses,
            )
        except MmspecError as error:
            recorder.missing(f"{name}: {error}")
            continue
        recorder.found(f"{name} head", _told(trained, losses, time.monotonic() - begun))
        yield name, trained.override


def write_data(folder: Path, count: int) -> Path:
    """A JSONL file of what the target was trained to say, on words that are not measured with."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            task = _MIX[number % len(_MIX)]
            sample = TASKS[task](Random(f"heads/{number}"))
            line: dict[str, object] = {
                "id": str(number),
                "prompt": sample.prompt_text,
                "answer": sample.answer,
            }
            if sample.image is not None:
                sample.image.save(folder / f"{number}.png")
                line["image"] = f"{number}.png"
            file.write(json.dumps(line) + "\n")
    return path


def _settings(setting: Setting) -> list[str]:
    size = 1024 if setting.is_small else 16384
    held_out = 0.25 if setting.is_small else 0.01
    return [
        "train.answers=given",
        "train.rate=0.001",
        "train.max_tokens=4096",
        f"train.batch_tokens={size}",
        f"train.held_out={held_out}",
    ]


def _told(trained: Trained, losses: _Losses, seconds: float) -> HeadTraining:
    last, after = trained.last, trained.acceptance
    assert last is not None and after is not None and losses.first is not None
    return HeadTraining(
        trained.parameters,
        last.step,
        last.tokens,
        round(seconds, 1),
        losses.first,
        losses.last,
        [round(share, 4) for share in after.top_1],
        round(after.tokens_a_step, 3),
    )
