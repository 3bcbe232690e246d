"""train_head: files and an engine in, a folder with a head out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from mmspec.batch import Tally
from mmspec.config import Config, TrainConfig, load_config
from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.target import Target
from mmspec.target.fingerprint import weights_fingerprint
from mmspec.training.heads.acceptance import Acceptance
from mmspec.training.heads.features import FeatureReader
from mmspec.training.heads.loop import Report, check_begun, evaluations, train
from mmspec.training.heads.method import HeadMethod
from mmspec.training.heads.methods import DRAFTERS, METHODS, Counts, check_head
from mmspec.training.heads.prepare import DataSettings, Prepared, prepare
from mmspec.training.heads.settings import Settings


class Watcher(Protocol):
    """Is told how a run goes on."""

    def on_answers(self, tally: Tally, total: int) -> None:
        """The target has given one more answer, of `total`."""

    def on_prepared(self, prepared: Prepared) -> None:
        """The data is ready, training begins."""

    def on_report(self, report: Report) -> None:
        """A step is done."""


class Unwatched:
    """Heeds nothing; a Watcher of its own may override what it wants to know."""

    def on_answers(self, tally: Tally, total: int) -> None:
        pass

    def on_prepared(self, prepared: Prepared) -> None:
        pass

    def on_report(self, report: Report) -> None:
        pass


@dataclass(frozen=True)
class Trained:
    """A run that came to its end."""

    folder: Path
    head: str
    parameters: int
    last: Report | None  # None where an earlier call had come to the end
    first_acceptance: Acceptance | None  # before the first step; None without held-out texts
    acceptance: Acceptance | None  # the last that was found

    @property
    def drafter(self) -> str:
        """The name of the drafter that uses such a head."""
        return DRAFTERS[self.head]

    @property
    def override(self) -> str:
        """What `overrides=` of mmspec.load, or --set, takes to use the head."""
        return f"drafter.{self.drafter}.path={self.folder}"


_UNWATCHED = Unwatched()


def train_head(
    engine: Engine,
    data: str | Sequence[str],
    *,
    head: str,
    out: str | Path,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    prompt: str | None = None,
    field: str = "text",
    config: str | Path | Config | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
    watcher: Watcher = _UNWATCHED,
) -> Trained:
    """Trains a head (`METHODS`) for the engine's target on files, folders or globs, until `steps`
    or `minutes` are used up, and writes it to `out` in its published form.

    `resume` goes on with what `out` holds, to the same weights on a CPU as without a stop; with
    nothing there it begins. `prompt` is asked about each document or image. The section `train` of
    `config` and `overrides` ("train.rate=1e-4") sets the rest. The target stays as it is.

    Raises ConfigError: a wrong setting, a folder with another training; InputError: nothing to
    learn from; ModelError: a target that such a head cannot be made for.
    """
    chosen = load_config(config, overrides)
    told, folder = chosen.train, Path(out)
    check_head(head)
    settings = loop_settings(told, steps=steps, minutes=minutes)
    check_folder(folder, resume=resume)
    about = data_settings(told, prompt=prompt, field=field)
    inputs = [data] if isinstance(data, str) else list(data)
    # A head that cannot be made is told before the target answers for hours.
    _made(engine.target, head, told, np.zeros(engine.target.vocab_size, np.int64))
    prepared = prepare(engine, inputs, about, folder, on_answers=watcher.on_answers)
    watcher.on_prepared(prepared)
    target = engine.target
    assert engine.inputs is not None  # `prepare` has refused that
    method = _made(target, head, told, prepared.learned_counts(target.vocab_size))
    reader = FeatureReader(target, engine.inputs, taps=method.taps, kv_layer=method.kv_layer)
    run = {
        "head": head,
        "target": weights_fingerprint(target.model),
        "data": prepared.fingerprint,
        "held_out": told.held_out,
        "seed": told.seed,
        "batch_tokens": told.batch_tokens,
        "accumulate": told.accumulate,
        **_of_head(head, told),
    }
    last: Report | None = None
    for last in train(
        method,
        reader,
        prepared.examples,
        prepared.held_out,
        settings=settings,
        folder=folder,
        dtype=target.dtype,
        run=run,
        resume=resume,
    ):
        watcher.on_report(last)
    found = evaluations(folder)
    return Trained(
        folder,
        head,
        sum(parameter.numel() for parameter in method.module.parameters()),
        last,
        found[0] if found else None,
        found[-1] if found else None,
    )


def _made(target: Target, head: str, config: TrainConfig, counts: Counts) -> HeadMethod:
    """The head with the seed's first weights. Raises ConfigError and ModelError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return METHODS[head](target, config, counts)


def loop_settings(config: TrainConfig, *, steps: int | None, minutes: float | None) -> Settings:
    """The loop's settings of a configuration. Raises ConfigError."""
    return Settings(steps=steps, minutes=minutes, **_fields_of(Settings, config))


def data_settings(config: TrainConfig, *, prompt: str | None, field: str) -> DataSettings:
    """The data's settings of a configuration. Raises ConfigError."""
    return DataSettings(prompt=prompt, field=field, **_fields_of(DataSettings, config))


def _fields_of(kind: type, config: TrainConfig) -> dict[str, Any]:
    """What the configuration says of the fields of `kind`, by their names."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in vars(config).items() if name in names}


def _of_head(head: str, config: TrainConfig) -> dict[str, object]:
    """The settings of one kind of head, by their keys."""
    section = {"eagle2": "eagle"}.get(head, head)
    return {f"{section}.{key}": value for key, value in asdict(getattr(config, section)).items()}


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raises before hours of work, not after them: ConfigError where another training is in there,
    InputError where nothing can be written."""
    check_begun(folder, resume=resume)
    try:
        (folder / "training").mkdir(parents=True, exist_ok=True)
        probe = folder / "training" / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error
