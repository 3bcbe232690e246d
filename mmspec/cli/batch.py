"""`mmspec batch`: thousands of documents or prompts, answered into a JSONL file."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeElapsedColumn
from rich.text import Text

from mmspec.cli import options
from mmspec.cli.console import (
    EXIT_DIFFERENT,
    EXIT_INTERRUPTED,
    consoles,
    mistakes_told,
    printable,
    quiet_transformers,
    tell,
)
from mmspec.cli.loading import Loading
from mmspec.cli.options import PROMPT, SAMPLING, option, switch
from mmspec.cli.progress import Bar
from mmspec.cli.prompt import read_prompt
from mmspec.cli.schema import following, read_schema
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec import Engine
    from mmspec.batch import Tally

_LOG_EVERY_S = 60
_SPEED_OF_LAST_S = 1800  # for the time that is left: a long document may take minutes


def batch(
    model: options.Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS...",
            help="Files, folders, globs: JSONL, CSV or Parquet of prompts, OpenAI's batch files, "
            "or with --prompt documents and images.",
        ),
    ],
    out: Annotated[Path, option("PATH", "The JSONL file of answers, one line each.")],
    prompt: Annotated[
        str | None,
        option("TEXT", "What is asked about each document; - reads stdin, @FILE a file.", PROMPT),
    ] = None,
    field: Annotated[
        str, option("NAME", "With --prompt: the field of a record that holds its text.", PROMPT)
    ] = "text",
    pages: Annotated[
        bool,
        switch(
            "--pages",
            "With --prompt: about each page of a PDF as a picture; its text layer drafts.",
            PROMPT,
        ),
    ] = False,
    rows: Annotated[
        int | None,
        option("N", "So many at a time, in place of the configured decode.max_rows.", min=1),
    ] = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    stop: options.Stop = None,
    schema: options.Schema = None,
    seed: Annotated[
        int, option("N", "With an input's id it gives that answer's own seed.", SAMPLING, min=0)
    ] = 0,
    fresh: Annotated[
        bool, switch("--fresh", "Drop the answers that are in --out already.")
    ] = False,
    drafter: options.Drafter = None,
    config: options.ConfigName = None,
    overrides: options.Overrides = None,
    speculate: options.Speculate = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Answer many prompts, or one prompt about many documents, into a JSONL file.

    Each answer is written as it ends. Interrupted or killed, the same command goes on where it was,
    with the same texts; what failed is tried again. Exit code 1 if something failed.
    """
    _, stderr = consoles()
    with mistakes_told(stderr):
        asked = None if prompt is None else read_prompt(prompt)
        given: dict[str, object] = {
            "system": system,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "stop": stop,
        }
        form = None if schema is None else read_schema(schema)
        asked_for = {name: value for name, value in given.items() if value is not None}
        settings = [*(overrides or ()), *([] if rows is None else [f"decode.max_rows={rows}"])]
        loading = Loading(model, config, settings, dtype, device, drafter)
        quiet_transformers()
        from mmspec.batch import Ledger, count_tasks, find_inputs, read_tasks, run_batch
        from mmspec.requests import build_request

        build_request("", asked_for)
        # A run that goes on finds its own answers in a folder where they are written.
        files = [file for file in find_inputs(inputs) if file.resolve() != out.resolve()]
        told = [model, asked, field, seed, asked_for, dtype, config, overrides]
        told += ["pages"] if pages else []
        told += [] if form is None else [form]
        run = hashlib.sha256(json.dumps(told).encode(errors="backslashreplace")).hexdigest()[:12]
        with Ledger(out, run=run, fresh=fresh) as ledger:
            if ledger.answered:
                stderr.print(f"Going on: {len(ledger.answered):,} are answered already")
            asked_for["speculate"] = "auto" if speculate is None else speculate
            total = count_tasks(files, prompt=asked, pages=pages)
            tasks = read_tasks(
                files, prompt=asked, field=field, pages=pages, answered=ledger.answered
            )
            shown = _Shown(stderr, total)

            def load() -> "Engine":
                shown.show(what="Loading the model")
                engine = loading.load()
                asked_for["logits_processors"] = following(engine, form)
                return engine

            try:
                with shown:
                    tally = run_batch(
                        load,
                        tasks,
                        ledger,
                        options=asked_for,
                        seed=seed,
                        on_progress=shown.update,
                        model=model,
                    )
            except KeyboardInterrupt as error:
                num_there = len(ledger.answered)
                told_last = f"Interrupted: {num_there:,} are in {out}; run the same command again"
                tell(stderr, Text(printable(f"{told_last} to go on.")))
                raise typer.Exit(EXIT_INTERRUPTED) from error
        tell(stderr, summary(tally, out))
    if tally.num_failed:
        raise typer.Exit(EXIT_DIFFERENT)


def summary(tally: "Tally", out: Path) -> Text:
    """A run in figures, and what failed."""
    parts = [f"{tally.num_answered:,} answered"]
    if tally.num_earlier:
        parts.append(f"{tally.num_earlier:,} before")
    if tally.num_failed:
        parts.append(f"{tally.num_failed:,} failed")
    if tally.num_cut_off:
        parts.append(f"{tally.num_cut_off:,} ended by length")
    text = Text(printable(f"{' · '.join([*parts, *_speeds(tally)])} · {out}"))
    for failure in tally.failures:
        text.append(f"\n{printable(' '.join(failure.split()))}", style="red")
    if tally.num_failed > len(tally.failures):
        text.append(f"\nand {tally.num_failed - len(tally.failures):,} more: see {out}", "red")
    return text


def _speeds(tally: "Tally") -> list[str]:
    if not tally.new_tokens or not tally.seconds:
        return []
    return [
        counted(tally.new_tokens, "token"),
        f"{1 + tally.accepted_tokens / max(tally.steps, 1):.2f} a step",
        f"{tally.new_tokens / tally.seconds:,.0f} tokens/s",
    ]


class _Shown(Bar):
    """The progress: a bar on a terminal, a line a minute anywhere else."""

    def __init__(self, console: Console, total: int) -> None:
        from mmspec.batch import Tally

        super().__init__(
            console,
            "Answering",
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            total=total,
            log_every_s=_LOG_EVERY_S,
            speed_of_last_s=_SPEED_OF_LAST_S,
        )
        self.tally = Tally()
        self._total = total

    def update(self, tally: "Tally") -> None:
        self.tally = tally
        failed = f" · {tally.num_failed:,} failed" if tally.num_failed else ""
        told = f"{tally.new_tokens / max(tally.seconds, 1e-9):,.0f} tokens/s{failed}"
        self.show(tally.num_done, what=told)
        self.log(f"{tally.num_done:,} of {self._total:,} · {told}")
