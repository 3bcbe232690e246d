"""`mmspec bench`: how fast, against transformers' own ways, on one machine in one run."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import mmspec
from mmspec.cli.console import EXIT_DIFFERENT, consoles, mistakes_told, quiet_transformers
from mmspec.cli.options import LOADING, ConfigName, Device, Dtype, Model, option, switch
from mmspec.errors import ConfigError, InputError

if TYPE_CHECKING:
    from mmspec.bench import Method, Report
    from mmspec.bench.lineup import Lineup
    from mmspec.bench.machine import Machine
    from mmspec.bench.suites import Task

_SUITES = ("bundled", "data", "file")
_QUESTIONS = 4
_DATA_TOKENS = 2048  # a meeting of 10,000 would take a CPU most of the time to read
_REFRESH_HZ = 0.2  # beside when there is something new to say
_SHARED_BYTES = 8 * 2**30  # of prompts' KV
_PAIRS = 7  # the fewest that make a bar
_WHAT, _WAYS = "What is decoded", "Ways of decoding"  # headings


def bench(
    model: Model,
    suite: Annotated[
        str | None,
        option(
            "NAME", "bundled (the bundled model's tasks), data (--data) or file (--prompts).", _WHAT
        ),
    ] = None,
    data: Annotated[
        Path | None,
        option("PATH", "A folder with qmsum/, state_union/, kv_lookup/ or prompts/.", _WHAT),
    ] = None,
    prompts: Annotated[
        Path | None, option("PATH", "Your own prompts: JSONL, or text with one a line.", _WHAT)
    ] = None,
    task: Annotated[
        list[str] | None, option("NAME", "Only tasks that begin so; may be repeated.", _WHAT)
    ] = None,
    num_prompts: Annotated[int | None, option("N", "Of each task.", _WHAT, min=1)] = None,
    max_prompt_tokens: Annotated[
        int | None,
        option(
            "N", "Longer ones lose the end of their document. With --data: 2048.", _WHAT, min=16
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, option("N", "In place of the tasks' own.", _WHAT, min=2)
    ] = None,
    drafter: Annotated[
        list[str] | None,
        option("NAME", "Ours with this one; may be repeated. All by default.", _WAYS),
    ] = None,
    method: Annotated[
        list[str] | None,
        option("TEXT", "Ours with settings, 'wide: decode.max_nodes=48'; may be repeated.", _WAYS),
    ] = None,
    peer: Annotated[
        list[str] | None,
        option("TEXT", "transformers with arguments of generate, 'NAME: argument=value'.", _WAYS),
    ] = None,
    draft_model: Annotated[
        str | None, option("MODEL", "For transformers' assisted generation.", _WAYS)
    ] = None,
    peers: Annotated[bool, switch("--peers/--no-peers", "transformers' ways.", _WAYS)] = True,
    share_prefill: Annotated[
        bool,
        switch(
            "--share-prefill",
            "Ours read a prompt once for all of them: for long ones. End to end then says nothing.",
        ),
    ] = False,
    pairs: Annotated[int, option("N", "Interleaved runs of every method.", min=1)] = _PAIRS,
    threads: Annotated[int, option("N", "torch's threads, for all.", min=1)] = 1,
    config: ConfigName = None,
    overrides: Annotated[
        list[str] | None,
        option("KEY=VALUE", "For all methods of ours; may be repeated.", LOADING, name="--set"),
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[Path | None, option("PATH", "Write everything measured to this file.")] = None,
    as_json: Annotated[bool, switch("--json", "The same, on stdout.")] = False,
    force: Annotated[bool, switch("--force", "Measure on a busy machine too.")] = False,
) -> None:
    """Measure decoding speeds: mmspec's with each drafter, plain, and transformers' own.

    All greedy, every method on the same prompts, interleaved. Exit code 1 if a text of ours is
    not transformers' own.
    """
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        mmspec.load_config(config, overrides or ())  # a mistake is told before torch is imported
        quiet_transformers()
        import torch

        from mmspec.bench import build_report, measure
        from mmspec.bench.lineup import build_lineup
        from mmspec.bench.machine import refuse_if_busy, this_machine
        from mmspec.bench.suites import Task, chosen_tasks
        from mmspec.cli.bench_table import closing_lines, heading, task_table

        methods, required = _methods(drafter, method, peer, draft_model, peers=peers)
        suite = suite or _suite(model, data, prompts)
        tasks = chosen_tasks(_tasks(suite, data, prompts, num_prompts), task or ())
        if max_new_tokens is not None:
            tasks = [Task(t.name, t.questions, max_new_tokens) for t in tasks]
        machine = this_machine(threads=threads)
        if not force:
            refuse_if_busy(machine)
        torch.set_num_threads(threads)
        # A spinner that turns would be measured too.
        with stderr.status("Loading the model", refresh_per_second=_REFRESH_HZ) as status:
            lineup = build_lineup(
                model,
                methods,
                config=config,
                overrides=overrides or (),
                dtype=dtype,
                device=device,
                is_required=lambda one: one in required,
                prefix_bytes=_SHARED_BYTES if share_prefill else 0,
            )
            room = (lineup.max_positions or sys.maxsize) - max(t.max_new_tokens for t in tasks)
            room = min(room, max_prompt_tokens or (_DATA_TOKENS if suite == "data" else room))
            measured = measure(
                tasks,
                lineup.runners,
                lineup.inputs,
                plain=lineup.plain,
                pairs=pairs,
                room=room,
                progress=status.update,
            )
    for one in measured:
        one.refused.update(lineup.refused)
    report = build_report(measured, methods, pairs=pairs)
    values = report_values(report, machine, lineup, methods, model=model, room=room)
    if as_json:
        typer.echo(json.dumps(values))
    else:
        stdout.print(heading(Path(model).name, lineup.dtype, machine, pairs=pairs))
        for one_task in report.tasks:
            stdout.print(task_table(one_task, width=stdout.width))
        stdout.print(closing_lines(report, lineup.inputs.tokenizer, dtype=lineup.dtype))
    if out is not None:  # behind what is shown: a full disk must not cost all that was measured
        with mistakes_told(stderr):
            _write(out, json.dumps(values, indent=1) + "\n")
        if not as_json:
            stderr.print(f"written to {out}")
    if not report.is_exact:
        raise typer.Exit(EXIT_DIFFERENT)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"--out {path}: cannot be written: {why}; expected a file") from error


def _methods(
    drafters: Sequence[str] | None,
    ours: Sequence[str] | None,
    peers_given: Sequence[str] | None,
    draft_model: str | None,
    *,
    peers: bool,
) -> tuple[list["Method"], list["Method"]]:
    """All methods, and those that were asked for by name: these must not be refused by mmspec."""
    from mmspec.bench import parse_method, parse_peer, standard_methods

    given = [parse_method(text) for text in ours or ()]
    given += [parse_peer(text) for text in peers_given or ()]
    methods = standard_methods(drafters or (), draft_model=draft_model, peers=peers)
    names = [method.name for method in [*methods, *given]]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"methods named twice: {', '.join(sorted(twice))}; give other names")
    return [*methods, *given], [*given, *(methods if drafters else ())]


def _suite(model: str, data: Path | None, prompts: Path | None) -> str:
    """The suite that is meant where none is named."""
    from mmspec.target.load import BUNDLED, resolve_path

    if prompts is not None:
        return "file"
    if data is not None:
        return "data"
    if Path(resolve_path(model)).parent == BUNDLED:
        return "bundled"
    raise InputError(
        "no prompts: give a folder of them with --data, or a file of your own with --prompts"
    )


def _tasks(suite: str, data: Path | None, prompts: Path | None, number: int | None) -> list["Task"]:
    from mmspec.bench.folder import folder_tasks
    from mmspec.bench.suites import bundled_tasks, file_tasks

    if suite == "bundled":
        return bundled_tasks(number or _QUESTIONS)
    if suite == "data" and data is not None:
        return folder_tasks(data, number or _QUESTIONS)
    if suite == "file" and prompts is not None:
        return file_tasks(prompts, number)
    needed = {"data": "needs --data PATH", "file": "needs --prompts PATH"}
    expected = f"expected one of {', '.join(_SUITES)}"
    raise ConfigError(f"--suite {suite}: {needed.get(suite, expected)}")


def report_values(
    report: "Report",
    machine: "Machine",
    lineup: "Lineup",
    methods: Sequence["Method"],
    *,
    model: str,
    room: int,
) -> dict[str, object]:
    """Everything that was measured and where, as plain values for json.dumps."""
    from mmspec.bench.harness import command_line, without_folders
    from mmspec.bench.report import NOTES

    return {
        **asdict(machine),
        "command": command_line("mmspec"),
        "model": Path(model).name,
        "dtype": lineup.dtype,
        "max_prompt_tokens": room,
        "notes": NOTES,
        "methods": [
            {
                **asdict(method),
                "overrides": [without_folders(override) for override in method.overrides],
                "draft_model": method.draft_model and Path(method.draft_model).name,
            }
            for method in methods
        ],
        **asdict(report),
    }
