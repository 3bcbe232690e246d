"""`mmspec check`: is speculative text the plain text, on your model, prompts and pictures?"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import mmspec
from mmspec.cli import options
from mmspec.cli.command import Command
from mmspec.cli.console import EXIT_MISTAKE, consoles, mistakes_told, quiet_transformers
from mmspec.cli.loading import Loading
from mmspec.cli.options import PROMPT, SAMPLING, option, switch
from mmspec.cli.prompt import read_prompt
from mmspec.errors import InputError
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec import Request
    from mmspec.check import CheckReport

EXIT_IDENTICAL, EXIT_NEAR_TIES, EXIT_BUG, EXIT_CHECK_MISTAKE = 0, 1, 2, 3
_SHOWN = 3  # differences in full


class CheckCommand(Command):
    """Its exit codes 0, 1 and 2 are the verdict, so that a wrong command line needs another."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:  # typer has click within or beside it, by its version
            if getattr(error, "exit_code", None) == EXIT_MISTAKE:
                error.exit_code = EXIT_CHECK_MISTAKE  # type: ignore[attr-defined]
            raise


def check(
    model: options.Model,
    prompt: Annotated[
        list[str] | None,
        option("TEXT", "A prompt; may be repeated; - reads stdin, @FILE a file.", PROMPT),
    ] = None,
    prompts: Annotated[
        Path | None, option("PATH", "A file of prompts: JSONL, or text with one a line.", PROMPT)
    ] = None,
    image: Annotated[
        list[str] | None, option("PATH", "An image for every --prompt; may be repeated.", PROMPT)
    ] = None,
    raw: Annotated[bool, switch("--raw", "No chat template.", PROMPT)] = False,
    seeds: Annotated[int, option("N", "Sampled runs, with seeds 1, 2, ...", SAMPLING, min=0)] = 3,
    temperature: Annotated[float, option("X", "Of the sampled runs.", SAMPLING)] = 1.0,
    top_p: Annotated[float, option("X", "Of the sampled runs; 1 is off.", SAMPLING)] = 1.0,
    top_k: Annotated[int, option("N", "Of the sampled runs; 0 is off.", SAMPLING)] = 0,
    max_new_tokens: Annotated[int, option("N", "Of each text, at most.", SAMPLING, min=1)] = 64,
    stress: Annotated[
        bool, switch("--stress/--no-stress", "Also a drafter that hides the truth in trees.")
    ] = True,
    drafter: options.Drafter = None,
    config: options.ConfigName = None,
    overrides: options.Overrides = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Check that speculation does not change the text, on your model and prompts.

    Decodes each prompt plainly and with drafts, greedily and sampled, alone and in a ragged batch,
    and compares token by token; plain greedy text is compared with transformers' own. Exit code:
    0 all identical, 1 near-ties of a low precision only, 2 a difference that rounding does not
    explain, 3 a mistake in the command.
    """
    stdout, stderr = consoles()
    with mistakes_told(stderr, exit_code=EXIT_CHECK_MISTAKE):
        loading = Loading(model, config, overrides, dtype, device, drafter)
        quiet_transformers()
        from mmspec.check import run_check
        from mmspec.check.prompts import default_requests
        from mmspec.check.stress import Stress
        from mmspec.cli.check_report import check_table, closing_lines, difference_lines, heading

        requests = _requests(prompt, prompts, image, raw=raw)
        with stderr.status("Loading the model") as status:
            engine = loading.load()
            if engine.inputs is None:
                raise InputError(f"{model}: no tokenizer found, and a check's prompts are texts")
            requests = requests or default_requests(engine.inputs)
            stressed = None
            if stress:
                knowing = Stress(engine.target.vocab_size)
                beside = mmspec.load(
                    engine.target.model, config=config, overrides=overrides or (), drafter=knowing
                )
                stressed = (beside, knowing)
            report = run_check(
                engine,
                requests,
                seeds=range(1, seeds + 1),
                sampling={"temperature": temperature, "top_p": top_p, "top_k": top_k},
                max_new_tokens=max_new_tokens,
                stressed=stressed,
                progress=status.update,
            )
    code = exit_code(report)
    if as_json:
        values = {"verdict": _VERDICTS[code], "model": Path(model).name, **asdict(report)}
        typer.echo(json.dumps(values))
    else:
        stdout.print(heading(Path(model).name, report, requests, max_new_tokens=max_new_tokens))
        stdout.print(check_table(report))
        places = report.places()
        for place in places[:_SHOWN]:
            stdout.print(difference_lines(*place))
        if len(places) > _SHOWN:
            stdout.print(
                f"… and at {counted(len(places) - _SHOWN, 'more place')}; --json has them all\n"
            )
        stdout.print(closing_lines(report))
    raise typer.Exit(code)


_VERDICTS = {EXIT_IDENTICAL: "identical", EXIT_NEAR_TIES: "near-ties", EXIT_BUG: "bug"}


def exit_code(report: "CheckReport") -> int:
    """0, 1 or 2, as the command's help says."""
    if report.is_identical:
        return EXIT_IDENTICAL
    return EXIT_BUG if report.has_bug else EXIT_NEAR_TIES


def _requests(
    prompts: Sequence[str] | None, file: Path | None, images: Sequence[str] | None, *, raw: bool
) -> list["Request"]:
    from mmspec.inputs.prompt_file import read_prompts

    pictures = tuple(images or ())
    if pictures and not prompts:
        raise InputError("--image without --prompt: say what is asked about it with --prompt")
    requests = [
        mmspec.Request(read_prompt(text), images=pictures, raw=raw) for text in prompts or ()
    ]
    if file is not None:
        requests += [
            mmspec.Request(p.prompt, images=p.images, videos=p.videos, audio=p.audio, raw=raw)
            for p in read_prompts(file)
        ]
    return requests
