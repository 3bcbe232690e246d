"""The loop: a generator of progress reports that survives being killed.

for report in train(method, reader, examples, settings=..., folder=...): show(report)
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mmspec.errors import ConfigError
from mmspec.training.checkpoint import load_checkpoint, save_checkpoint
from mmspec.training.clock import clock_s
from mmspec.training.heads.acceptance import Acceptance, evaluate
from mmspec.training.heads.batch import learned_counts
from mmspec.training.heads.epochs import Place, packed, walk
from mmspec.training.heads.examples import Example
from mmspec.training.heads.features import FeatureReader
from mmspec.training.heads.method import HeadMethod
from mmspec.training.heads.optimizer import Optimizer
from mmspec.training.heads.settings import Settings
from mmspec.training.schedule import rate_share

# Of the run, behind its beginning: early, so that a mistake is seen early.
_EVALUATED_AT = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Report:
    """What became of the run until now."""

    step: int
    progress: float  # 0..1
    trained_s: float  # evaluations among it
    tokens: int  # read since the beginning
    tokens_per_s: float  # of this step
    epoch: int
    rate: float
    losses: dict[str, float]  # "loss" and its parts, of this step
    acceptance: Acceptance | None = None  # of held-out texts, where it was just found


@dataclass
class _State:
    """Everything that a resumed run needs. What is drawn in a step comes from its number."""

    method: HeadMethod
    optimizer: Optimizer
    place: Place = field(default_factory=Place)
    step: int = 0
    tokens: int = 0
    trained_s: float = 0.0

    def save(self, folder: Path, run: Mapping[str, object], *, dtype: torch.dtype) -> None:
        values = {
            "module": self.method.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "place": tuple(self.place),
            "step": self.step,
            "tokens": self.tokens,
            "trained_s": self.trained_s,
            "run": dict(run),
        }
        save_checkpoint(values, folder / "training" / CHECKPOINT)
        self.method.save(folder, dtype=dtype)

    def load(self, folder: Path, run: Mapping[str, object], *, device: torch.device) -> None:
        """Raises ConfigError for a checkpoint of another run, naming what differs."""
        saved = load_checkpoint(folder / "training" / CHECKPOINT, device)
        for key, value in run.items():
            begun = saved["run"].get(key, value)  # an older version may not have written it
            if begun != value:
                raise ConfigError(
                    f"{folder}: its training began with {key}={begun!r}, got {value!r}; go on as "
                    "it began, or train into another folder"
                )
        self.method.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.place = Place(*saved["place"])
        self.step, self.tokens = saved["step"], saved["tokens"]
        self.trained_s = saved["trained_s"]


def check_begun(folder: Path, *, resume: bool) -> bool:
    """Whether the folder holds a training. Raises ConfigError for one that is not to be gone on
    with."""
    is_begun = (folder / "training" / CHECKPOINT).is_file()
    if is_begun and not resume:
        raise ConfigError(
            f"{folder}: holds a training already; go on with it (--resume), or name another folder"
        )
    return is_begun


def train(
    method: HeadMethod,
    reader: FeatureReader,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    *,
    settings: Settings,
    folder: Path,
    dtype: torch.dtype,
    run: Mapping[str, object],
    resume: bool = False,
) -> Iterator[Report]:
    """Trains until the time or the steps are used up, reporting every step. `folder` gets the head
    in `dtype` and, under `training/`, the checkpoint and a log; both are rewritten as training goes
    on, and when the generator is closed. `run`: what a resumed run must agree in.

    Raises ConfigError: `folder` holds another training, or one that is not resumed.
    """
    # 1. State, fresh or taken up again
    device = next(method.module.parameters()).device
    optimizer = Optimizer(method.module, clip=settings.clip, weight_decay=settings.weight_decay)
    state = _State(method, optimizer)
    if check_begun(folder, resume=resume):
        state.load(folder, run, device=device)
    log = _Log(folder / "training" / LOG, state.step)
    data = walk(
        [example.num_tokens for example in examples],
        batch_tokens=settings.batch_tokens,
        seed=settings.seed,
        place=state.place,
    )
    waiting = [at for at in _EVALUATED_AT if at > _progress(state, settings)]
    saved_s = state.trained_s
    is_whole = True  # False while weights are written: that is not saved
    try:
        # 2. What the head is worth as it is: before the first step, or where that was interrupted
        if log.last_step != state.step:
            report = Report(
                state.step,
                _progress(state, settings),
                state.trained_s,
                state.tokens,
                tokens_per_s=0.0,
                epoch=state.place.epoch,
                rate=0.0,
                losses={},
                acceptance=_evaluated(method, reader, held_out, settings),
            )
            log.write(report)
            yield report
        while (progress := _progress(state, settings)) < 1:
            begun_s = clock_s(device.type)
            # 3. One step
            rate = (settings.rate or method.rate) * rate_share(
                progress, warmup=settings.warmup, decay=settings.decay
            )
            drawn = [next(data) for _ in range(settings.accumulate)]
            taken = [[examples[index] for index in chosen] for chosen, _ in drawn]
            losses = _step(state, reader, taken, settings)
            tokens = sum(example.num_tokens for some in taken for example in some)
            is_whole = False
            optimizer.step(rate)
            state.step += 1
            state.tokens += tokens
            state.place = drawn[-1][1]
            is_whole = True
            spent_s = clock_s(device.type) - begun_s
            # 4. Bookkeeping
            state.trained_s += spent_s
            progress = _progress(state, settings)
            acceptance = None
            if waiting and progress >= waiting[0]:
                waiting = [at for at in waiting if at > progress]
                acceptance = _evaluated(method, reader, held_out, settings)
                state.trained_s += clock_s(device.type) - begun_s - spent_s
            report = Report(
                state.step,
                progress,
                state.trained_s,
                state.tokens,
                tokens / max(spent_s, 1e-9),
                state.place.epoch,
                rate,
                losses,
                acceptance,
            )
            log.write(report)
            if state.trained_s - saved_s > settings.checkpoint_every_s:
                state.save(folder, run, dtype=dtype)
                saved_s = state.trained_s
            yield report
    except GeneratorExit:  # the caller stopped between two steps
        state.save(folder, run, dtype=dtype)
        raise
    except KeyboardInterrupt:
        if is_whole:  # the step that was begun is done again
            state.save(folder, run, dtype=dtype)
        raise
    state.save(folder, run, dtype=dtype)


def _step(
    state: _State,
    reader: FeatureReader,
    taken: Sequence[Sequence[Example]],
    settings: Settings,
) -> dict[str, float]:
    """Gradients of the batches of a step. Returns its losses."""
    module = state.method.module
    module.train()
    device = next(module.parameters()).device
    generator = torch.Generator().manual_seed((settings.seed * 2**32 + state.step) % 2**63)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # A token counts as much in a short batch as in a long one.
    counts = learned_counts(example.learned for some in taken for example in some)
    parts: dict[str, torch.Tensor] = {}
    for some in taken:
        batch = replace(reader.read(some), counts=counts)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses = state.method.loss(batch, generator)
        if losses.total.requires_grad:  # a batch of the shortest answers may teach it nothing
            # Of the head alone: the target's own head, through which it speaks, stays as it is.
            losses.total.backward(inputs=trained)
        for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
            parts[name] = parts.get(name, 0) + value.float()
    values = torch.stack(list(parts.values())).tolist()
    return dict(zip(parts, values, strict=True))


def _evaluated(
    method: HeadMethod, reader: FeatureReader, held_out: Sequence[Example], settings: Settings
) -> Acceptance | None:
    if not held_out:
        return None
    method.module.eval()
    lengths = [example.num_tokens for example in held_out]
    groups = packed(range(len(lengths)), lengths, batch_tokens=settings.batch_tokens)
    batches = (reader.read([held_out[index] for index in group]) for group in groups)
    device = next(method.module.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return evaluate(method, batches, top_k=settings.top_k)


def _progress(state: _State, settings: Settings) -> float:
    if settings.steps is not None:
        return min(state.step / settings.steps, 1.0)
    assert settings.minutes is not None
    return min(state.trained_s / (settings.minutes * 60), 1.0)


class _Log:
    """A JSONL file of reports. A resumed run drops what its checkpoint does not know."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(path) if line["step"] <= step] if step else []
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        self.last_step = kept[-1]["step"] if kept else None

    def write(self, report: Report) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, each a Report as a mapping."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # cut off by a kill
                lines.append(json.loads(line))
    return lines


def evaluations(folder: Path) -> list[Acceptance]:
    """All that a training's log holds, the first one of the head as it began."""
    found = [line["acceptance"] for line in read_log(folder / "training" / LOG)]
    return [
        Acceptance(**{**one, "top_1": tuple(one["top_1"]), "top_k": tuple(one["top_k"])})
        for one in found
        if one is not None
    ]
