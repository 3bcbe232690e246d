"""Progress: a bar on a terminal, a line now and then anywhere else."""

import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


class Bar:
    """A context manager: within it a terminal shows the bar, which leaves nothing behind."""

    def __init__(
        self,
        console: Console,
        what: str,
        *columns: ProgressColumn,
        total: int | None = None,
        log_every_s: float = 0.0,
        speed_of_last_s: float = 30.0,
    ) -> None:
        """`what` is done, and `columns` beside it: by default so many of how many. The time that is
        left goes by `speed_of_last_s`."""
        self.console = console
        self._log_every_s = log_every_s
        self._logged_at = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *(columns or (MofNCompleteColumn(),)),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=speed_of_last_s,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total)

    def show(
        self, done: float | None = None, *, of: float | None = None, what: str | None = None
    ) -> None:
        """`done` of `of`, and `what`; None is as before."""
        self._progress.update(self._task, completed=done, total=of, description=what)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def log(self, line: str) -> None:
        """Where there is no terminal, if the last line is long enough ago."""
        now = time.monotonic()
        if not self.console.is_terminal and now - self._logged_at >= self._log_every_s:
            self._logged_at = now
            self.console.print(line)

    def stop(self) -> None:
        self._progress.stop()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class ReadingBar(Bar):
    """How far a prompt is read: it shows itself until that is done, or `stop`."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, "Reading the prompt")

    def update(self, done: int, of: int) -> None:
        """`done` prompt tokens of `of` are read: what Request.on_prefill is told."""
        self.show(done, of=of)
        self._progress.refresh()
        if done >= of:
            self.stop()
