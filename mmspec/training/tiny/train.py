"""The training loop: a generator of progress reports that survives being killed.

for report in train(Settings(...)): show(report)
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from mmspec.target.context import with_context
from mmspec.training.checkpoint import load_checkpoint, save_checkpoint
from mmspec.training.clock import clock_s
from mmspec.training.tiny import curriculum, longer, losses
from mmspec.training.tiny.batch import Batch, collate
from mmspec.training.tiny.build import build_model, build_processor
from mmspec.training.tiny.forward import encode_images
from mmspec.training.tiny.optimizer import Optimizer

AVERAGE_SHARE = 0.02  # of the newest weights in the shipped average, a step


@dataclass(frozen=True)
class Settings:
    """One run. The same settings and number of steps give the same weights on one machine."""

    checkpoint: Path  # a file, replaced as training goes on
    minutes: float = 75.0
    size: str = "tiny"
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    guidance: float = 0.3
    checkpoint_every_s: float = 120.0
    long_from: Path | None = None  # a finished model that is to learn long texts


@dataclass(frozen=True)
class Report:
    """One step's outcome."""

    step: int
    stage: str
    progress: float  # 0..1
    trained_s: float
    tokens: int  # since the beginning
    rate: float
    errors: dict[str, float] = field(default_factory=dict)  # task -> share of wrong answer tokens


@dataclass
class State:
    """Everything that a resumed run needs."""

    model: LlavaForConditionalGeneration
    average: LlavaForConditionalGeneration
    heads: losses.PatchHeads
    optimizer: Optimizer
    step: int = 0
    tokens: int = 0
    trained_s: float = 0.0

    @classmethod
    def fresh(cls, settings: Settings) -> "State":
        """New weights from the seed, or a finished model's, in a longer context."""
        model = build_model(settings.size, settings.seed)
        if settings.long_from is not None:
            config = with_context(LlavaConfig.from_pretrained(settings.long_from), longer.CONTEXT)
            model = LlavaForConditionalGeneration.from_pretrained(
                settings.long_from, config=config, dtype=torch.float32
            )
        model = model.to(settings.device)
        heads = losses.PatchHeads(model.config.text_config.hidden_size).to(settings.device)
        return cls(model, copy.deepcopy(model), heads, Optimizer([model, heads]))

    def save(self, path: Path) -> None:
        """Writes a checkpoint; a kill at any time leaves the old one or the new one."""
        modules = {name: getattr(self, name).state_dict() for name in ("model", "average", "heads")}
        counts = {"step": self.step, "tokens": self.tokens, "trained_s": self.trained_s}
        optimizer = self.optimizer.state_dict()
        save_checkpoint({**modules, "optimizer": optimizer, **counts}, path)

    def load(self, path: Path) -> None:
        """Takes up the checkpoint at `path`."""
        saved = load_checkpoint(path, self.model.device)
        for name in ("model", "average", "heads", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.tokens = saved["step"], saved["tokens"]
        self.trained_s = saved["trained_s"]

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average towards the newest weights, fast in the beginning."""
        share = max(AVERAGE_SHARE, 1 / (self.step + 1))
        average, newest = list(self.average.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(average, newest, share)


def export(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes a from_pretrained folder in fp32; each file is replaced in one go."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(partial)
    build_processor().save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)
        os.replace(file, folder / file.name)
    partial.rmdir()


def _move(batch: Batch, device: str) -> Batch:
    if device == "cpu":
        return batch
    moved: dict[str, Any] = {
        name: value.to(device)
        for name, value in vars(batch).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(batch, **moved)


def _see(state: State, settings: Settings, rng: Random, progress: float) -> dict[str, float]:
    """The tower and projector alone, by what each patch shows."""
    samples = curriculum.draw(progress, rng)
    batch = _move(collate(samples, rng), settings.device)
    assert batch.pixel_values is not None
    assert batch.characters is not None and batch.shapes is not None
    patches = encode_images(state.model, batch.pixel_values)
    loss, right = state.heads.loss(patches, batch.characters, batch.shapes)
    loss.backward()
    state.tokens += patches.shape[0] * patches.shape[1]
    return {samples[0].task: 1 - right.item()} if samples[0].task != "caption" else {}


def _answer(state: State, settings: Settings, rng: Random, progress: float) -> dict[str, float]:
    """Answers, guided attention and what patches show, for a few batches."""
    errors: dict[str, float] = {}
    course = _course(settings)
    heads = None if settings.long_from else state.heads  # a finished model comes without them
    num_batches = course.batches_a_step(progress)
    for _ in range(num_batches):
        samples = course.draw(progress, rng)
        batch = collate(
            samples,
            rng,
            corrupted=course.corrupted(progress),
            gaps=course.gaps(progress),
            context=state.model.config.text_config.max_position_embeddings,
        )
        batch = _move(batch, settings.device)
        with torch.autocast(settings.device.split(":")[0], torch.bfloat16):
            result = losses.compute(state.model, heads, batch, guidance=settings.guidance)
        (result.total / num_batches).backward()
        state.tokens += batch.token_ids.numel()
        errors[samples[0].task] = result.error
        if result.pointer == result.pointer:  # not NaN
            errors[samples[0].task + "_pointer"] = 1 - result.pointer
    return errors


def _course(settings: Settings) -> ModuleType:
    """What is trained when: the curriculum, or the long variant's stage."""
    return longer if settings.long_from else curriculum


def train(settings: Settings) -> Iterator[Report]:
    """Trains until the time is used up, reporting every step. Writes `settings.checkpoint`."""
    # 1. State, fresh or taken up again
    state = State.fresh(settings)
    if settings.resume and settings.checkpoint.exists():
        state.load(settings.checkpoint)
    state.model.train()
    saved_s = state.trained_s
    try:
        while state.trained_s < settings.minutes * 60:
            begun_s = clock_s(settings.device)
            # 2. One step; its data depend on the seed and its number only
            progress = state.trained_s / (settings.minutes * 60)
            rng = Random(f"{settings.seed}/{state.step}")
            stage = _course(settings).stage(progress)
            run = _see if stage == "see" else _answer
            errors = run(state, settings, rng, progress)
            rate = _course(settings).rate(progress)
            state.optimizer.step(rate)
            state.update_average()
            # 3. Bookkeeping
            state.step += 1
            state.trained_s += clock_s(settings.device) - begun_s
            if state.trained_s - saved_s > settings.checkpoint_every_s:
                state.save(settings.checkpoint)
                saved_s = state.trained_s
            yield Report(state.step, stage, progress, state.trained_s, state.tokens, rate, errors)
    except GeneratorExit:  # the caller stopped between two steps
        state.save(settings.checkpoint)
        raise
    state.save(settings.checkpoint)
