"""Recorder: what a section finds, written to disk as soon as it is found."""

import json
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmspec.errors import BackendWarning, GraphWarning
from mmspec.gpu_check.setting import GpuLost
from mmspec.kernels import says_lost

Status = Literal[
    "passed", "failed", "missing", "error", "left out", "running",
    "crashed", "out of time",  # of a section's own process
]  # fmt: skip


@dataclass
class SectionResult:
    """One section: what it measured, and what did not hold."""

    title: str
    status: Status = "running"
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)  # checked, and not as it should be
    missing: list[str] = field(default_factory=list)  # could not be checked here, and why
    found: dict[str, object] = field(default_factory=dict)
    error: str | None = None  # the traceback of what ended it early
    doing: str | None = None  # who is at work, and could end the process


class Recorder:
    """Gathers one section's result. The file always holds all that was found until then."""

    def __init__(
        self, result: SectionResult, save: Callable[[], None], *, always: str | None = None
    ) -> None:
        """`always`: who is at work where nobody else is said to be."""
        self.result = result
        self._save = save
        self._always = always
        self.doing(None)

    def found(self, name: str, value: object) -> None:
        """A measurement or a table under its name."""
        self.result.found[name] = value
        self._save()

    def check(self, holds: bool, what: str) -> None:
        """What should hold; if it does not, the section has failed."""
        if not holds:
            self.result.failures.append(what)
            self._save()

    def doing(self, who: str | None) -> None:
        """Who is at work from now on, for whoever finds that the process has ended."""
        who = who or self._always
        if who != self.result.doing:
            self.result.doing = who
            self._save()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What raises within it is a failure with its traceback, and the section goes on; not so
        where the GPU is lost to this process."""
        try:
            yield
        except Exception as error:
            if says_lost(error) or isinstance(error, GpuLost):
                raise
            self.result.found[f"{what}: traceback"] = "".join(traceback.format_exception(error))
            self.check(False, f"{what}: {type(error).__name__}: {error}")

    def missing(self, what: str) -> None:
        """What this machine does not have, said once."""
        if what not in self.result.missing:
            self.result.missing.append(what)
            self._save()

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Within it, what mmspec warns of, as it does without something, is missing, each once."""

        def hear(text: str) -> None:
            self.missing(f"warns: {text}")

        log, handler = logging.getLogger("mmspec"), _Handler(hear)
        log.addHandler(handler)
        try:
            with warnings.catch_warnings():
                show = warnings.showwarning

                def showwarning(
                    message: Warning | str, category: type[Warning], *place: Any, **more: Any
                ) -> None:
                    if issubclass(category, _HEARD):
                        hear(str(message))
                    show(message, category, *place, **more)

                warnings.showwarning = showwarning
                for kind in _HEARD:
                    warnings.simplefilter("always", kind)
                yield
        finally:
            log.removeHandler(handler)


_HEARD = (BackendWarning, GraphWarning)


class _Handler(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


def write_json(path: Path, header: Mapping[str, object], sections: Mapping[str, object]) -> None:
    """Replaces the file in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    text = json.dumps({**header, "sections": sections}, indent=1, default=_plain)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, path)


def plain(result: SectionResult) -> dict[str, Any]:
    """The section as it is read from a file again."""
    read: dict[str, Any] = json.loads(json.dumps(asdict(result), default=_plain))
    return read


def _plain(value: object) -> object:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)  # type: ignore[call-overload]
    return str(value)
