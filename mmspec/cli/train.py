"""`mmspec train`: a head for a target, from the user's own data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import TaskProgressColumn, TimeElapsedColumn
from rich.text import Text

from mmspec.cli.console import (
    EXIT_INTERRUPTED,
    consoles,
    mistakes_told,
    printable,
    quiet_transformers,
    tell,
)
from mmspec.cli.loading import Loading
from mmspec.cli.options import LOADING, PROMPT, ConfigName, Device, Drafter, Dtype, option, switch
from mmspec.cli.progress import Bar
from mmspec.cli.prompt import read_prompt
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec.batch import Tally
    from mmspec.training.heads import Acceptance, Report
    from mmspec.training.heads.prepare import Prepared

_LOG_EVERY_S = 30
_MINUTES = 60.0
_BROKEN_SHOWN = 5


def train(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A folder, a bundled model's name or a hub name."),
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Files, folders, globs: JSONL of prompts, chats or answers; documents, images.",
        ),
    ],
    head: Annotated[str, option("KIND", "medusa, eagle, eagle2, eagle3 or glide.")],
    out: Annotated[Path, option("FOLDER", "Where the head and its state go.")],
    minutes: Annotated[
        float | None, option("X", "Train so long; an hour, where --steps is not given.")
    ] = None,
    steps: Annotated[int | None, option("N", "Train so many steps.")] = None,
    resume: Annotated[bool, switch("--resume", "Go on with what --out holds.")] = False,
    prompt: Annotated[
        str | None,
        option(
            "TEXT",
            "What is asked about each document or image; - reads stdin, @FILE a file.",
            PROMPT,
        ),
    ] = None,
    field: Annotated[
        str,
        option("NAME", "The field of a JSONL line without a prompt that holds its text.", PROMPT),
    ] = "text",
    drafter: Drafter = None,
    config: ConfigName = None,
    overrides: Annotated[
        list[str] | None,
        option(
            "KEY=VALUE",
            "train.batch_tokens=8192, train.answers=own and such; may be repeated.",
            LOADING,
            name="--set",
        ),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Train a head that drafts for a target, on your own prompts, chats, documents and images.

    Prompts without an answer are answered by the target first. Interrupted or killed, the same
    command with --resume goes on where it was.
    """
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        asked = None if prompt is None else read_prompt(prompt)
        if minutes is None and steps is None:
            minutes = _MINUTES
        loading = Loading(target, config, overrides, dtype, device, drafter)
        chosen = loading.settings()
        quiet_transformers()
        from mmspec.batch import find_inputs
        from mmspec.training.heads import train_head
        from mmspec.training.heads.methods import check_head
        from mmspec.training.heads.train_head import check_folder, data_settings, loop_settings

        check_head(head)
        find_inputs(data)
        check_folder(out, resume=resume)
        loop_settings(chosen.train, steps=steps, minutes=minutes)
        data_settings(chosen.train, prompt=asked, field=field)
        with stderr.status("Loading the model"):
            engine = loading.load()
        shown = Shown(stderr)
        try:
            with shown:
                trained = train_head(
                    engine,
                    data,
                    head=head,
                    out=out,
                    steps=steps,
                    minutes=minutes,
                    resume=resume,
                    prompt=asked,
                    field=field,
                    config=chosen,
                    watcher=shown,
                )
        except KeyboardInterrupt as error:
            again = "the same command with --resume goes on"
            tell(stderr, Text(printable(f"Interrupted: {out} holds what was done; {again}.")))
            raise typer.Exit(EXIT_INTERRUPTED) from error
    from mmspec.cli.train_report import report, write_plot

    report(stdout, trained, shown.losses)
    plot = write_plot(out)
    tell(stderr, Text(printable(plot or "A plot needs matplotlib: pip install 'mmspec[train]'")))
    use = f'mmspec generate {target} "..." --drafter {trained.drafter} --set {trained.override}'
    stdout.print(Text(printable(use)), soft_wrap=True)


class Shown(Bar):
    """A Watcher: a bar on a terminal, a line now and then anywhere else."""

    def __init__(self, console: Console) -> None:
        columns = TaskProgressColumn(), TimeElapsedColumn()
        super().__init__(console, "Reading the data", *columns, log_every_s=_LOG_EVERY_S)
        self.losses: dict[str, float] = {}  # of the last steps, averaged
        self._rate = 0.0

    def on_answers(self, tally: "Tally", total: int) -> None:
        speed = tally.new_tokens / max(tally.seconds, 1e-9)
        told = f"The target answers · {speed:,.0f} tokens/s"
        self.show(tally.num_done, of=total, what=told)
        self.log(f"{tally.num_done:,} of {counted(total, 'answer')} · {speed:,.0f} tokens/s")

    def on_prepared(self, prepared: "Prepared") -> None:
        parts = [
            f"{counted(len(prepared.examples), 'text')}, {counted(prepared.num_tokens, 'token')}",
            f"{len(prepared.held_out):,} held out",
        ]
        if prepared.num_broken:
            parts.append(f"{prepared.num_broken:,} left out")
        text = Text(printable(" · ".join(parts)))
        for broken in prepared.broken[:_BROKEN_SHOWN]:
            text.append(f"\n{printable(' '.join(broken.split()))}", style="red")
        tell(self.console, text)
        self.show(0, of=1, what="Training")

    def on_report(self, report: "Report") -> None:
        for name, value in report.losses.items():
            self.losses[name] = 0.9 * self.losses.get(name, value) + 0.1 * value
        if report.tokens_per_s:
            self._rate = 0.9 * (self._rate or report.tokens_per_s) + 0.1 * report.tokens_per_s
        reached = f"step {report.step:,} · {self._loss()}"
        told = f"{reached} · {self._rate:,.0f} tokens/s"
        self.show(report.progress, of=1, what=told)
        if report.acceptance is not None:
            line = f"{reached} · {_shares(report.acceptance)}"
            tell(self.console, Text(printable(line)))
        else:
            self.log(f"{report.progress:.0%} · {told}")

    def _loss(self) -> str:
        """Without its parts: they would leave the bar no room, and stand in the log."""
        return f"loss {self.losses['loss']:.3f}" if self.losses else "begun"


def _shares(found: "Acceptance") -> str:
    by_depth = " ".join(f"{share:.0%}" for share in found.top_1)
    return f"said by depth {by_depth} · {found.tokens_a_step:.2f} tokens a step"
