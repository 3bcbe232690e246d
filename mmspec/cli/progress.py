"""The bar that shows how far a prompt is read, before the answer begins."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ReadingBar:
    """A context manager, on a terminal alone: it shows itself until the prompt is read, or
    `stop`, and then leaves nothing behind."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("Reading the prompt"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("reading", total=None)

    def update(self, done: int, of: int) -> None:
        """`done` prompt tokens of `of` are read: what Request.on_prefill is told."""
        self._progress.update(self._task, completed=done, total=of, refresh=True)
        if done >= of:
            self.stop()

    def stop(self) -> None:
        self._progress.stop()

    def __enter__(self) -> "ReadingBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
