"""`mmspec generate`: one prompt, its answer as it comes, and what the drafts were worth."""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

import mmspec
from mmspec.cli import options
from mmspec.cli.as_json import JsonObject, comparison_values, result_values
from mmspec.cli.console import (
    EXIT_DIFFERENT,
    EXIT_INTERRUPTED,
    consoles,
    has_colour,
    mistakes_told,
    quiet_transformers,
    tell,
)
from mmspec.cli.loading import Loading
from mmspec.cli.options import DRAFTING, PROMPT, SAMPLING, option, switch
from mmspec.cli.pairs import Pairs, pairs_text
from mmspec.cli.progress import ReadingBar
from mmspec.cli.prompt import read_passages, read_prompt
from mmspec.cli.render import AnswerWriter, Comparison, Palette, closing_line
from mmspec.cli.schema import following, read_schema
from mmspec.errors import ConfigError
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec import Engine, Piece, Request, Result
    from mmspec.reading import Reading

_WARM_UP_PIECES = 8
_SHORT_S = 5  # a comparison that took no longer is made twice


def generate(
    model: options.Model,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text; - reads stdin, @FILE reads a file.")
    ],
    image: Annotated[list[str] | None, option("PATH", "An image; may be repeated.", PROMPT)] = None,
    video: Annotated[list[str] | None, option("PATH", "A video; may be repeated.", PROMPT)] = None,
    audio: Annotated[
        list[str] | None, option("PATH", "A recording; may be repeated.", PROMPT)
    ] = None,
    passage: Annotated[
        list[str] | None,
        option("PATH", "A file to put before the prompt and draft from; may be repeated.", PROMPT),
    ] = None,
    draft_text: Annotated[
        list[str] | None,
        option(
            "PATH", "A file to draft from alone, as an OCR tool's output; may be repeated.", PROMPT
        ),
    ] = None,
    pdf: Annotated[
        str | None,
        option("PATH", "A PDF: its page as an image, drafted from its text layer.", PROMPT),
    ] = None,
    page: Annotated[
        list[int] | None, option("N", "Of the PDF, 1 unless given; may be repeated.", PROMPT)
    ] = None,
    raw: Annotated[bool, switch("--raw", "No chat template.", PROMPT)] = False,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: Annotated[float | None, option("X", "In [0, 1].", SAMPLING)] = None,
    repetition_penalty: Annotated[float | None, option("X", "1 is off.", SAMPLING)] = None,
    stop: options.Stop = None,
    schema: options.Schema = None,
    seed: Annotated[int | None, option("N", "The same seed gives the same text.", SAMPLING)] = None,
    drafter: options.Drafter = None,
    config: options.ConfigName = None,
    overrides: options.Overrides = None,
    speculate: options.Speculate = None,
    explain: Annotated[
        bool, switch("--explain", "Say what the controller did and why.", DRAFTING)
    ] = False,
    compare: Annotated[
        bool, switch("--compare", "Then decode plainly too; exit code 1 if it differs.", DRAFTING)
    ] = False,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Generate the answer to one prompt, in the model's own words, faster.

    The answer goes to stdout as it comes, coloured by who drafted it; what the model thinks before
    it, and the figures, go to stderr.
    """
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        if compare and speculate is False:
            raise ConfigError("--compare with --no-speculate: nothing to compare; leave one out")
        if page and pdf is None:
            raise ConfigError("--page without --pdf: name the PDF that it is a page of")
        text = read_prompt(prompt)
        form = None if schema is None else read_schema(schema)
        loading = Loading(model, config, overrides, dtype, device, drafter)
        quiet_transformers()
        from mmspec.inputs import pdf_pages
        from mmspec.reading import Reading

        pages = [] if pdf is None else list(pdf_pages(pdf, page or [1]))
        request = mmspec.Request(
            prompt=text,
            images=[*(image or ()), *(one.image for one in pages)],
            videos=video or (),
            audio=audio or (),
            passages=[
                *read_passages(passage or (), in_prompt=True),
                *read_passages(draft_text or (), in_prompt=False),
                *(one.passage for one in pages),
            ],
            raw=raw,
            system=system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=stop or (),
            seed=secrets.randbits(32) if seed is None else seed,
            speculate="auto" if speculate is None else speculate,
        )
        with stderr.status("Loading the model"):
            engine = loading.load()
            request = replace(request, logits_processors=following(engine, form))
            request = engine.prepare(request)
            # JSON of a schema is the whole answer.
            reading = Reading(engine.inputs, request) if form is None else None
            if reading is not None and not as_json:
                request = reading.request
            if compare:
                warm_up(engine, request)
        begun = time.perf_counter()
        result = _streamed(engine, request, reading, stdout, stderr, as_json=as_json)
        runs = None
        if compare:
            with stderr.status("Decoding plainly"):
                runs = compared(engine, request, result, begun=begun)
    if as_json:
        values = _values(result, reading)
        if runs is not None:
            values["compare"] = comparison_values(runs)
        typer.echo(json.dumps(values))
    elif runs is not None:
        stderr.print(pairs_text(runs))
    if explain and not as_json:
        tell(stderr, Text(f"Controller: {result.stats.explanation}", style="dim"))
    if runs is not None and not runs.is_identical:
        raise typer.Exit(EXIT_DIFFERENT)


def warm_up(engine: "Engine", request: "Request") -> None:
    """The prompt and a few tokens both ways: what only a first call pays for is paid here. Nothing
    is kept of them, for drafters may copy what was said before."""
    for speculate in (True, False):
        with engine.stream(request, speculate=speculate, reuse=False) as stream:
            for _ in islice(stream, _WARM_UP_PIECES):
                pass


def compared(engine: "Engine", request: "Request", result: "Result", *, begun: float) -> Pairs:
    """`result`, which was begun at `begun` (perf_counter), beside plain decoding; both once more,
    the other way round, if that is soon done. The second drafts know nothing of the first."""
    pairs = [Comparison(result, engine.generate(request, speculate=False))]
    if time.perf_counter() - begun < _SHORT_S:
        plain = engine.generate(request, speculate=False)
        pairs.append(Comparison(engine.generate(request, reuse=False), plain))
    return Pairs(pairs)


def _streamed(
    engine: "Engine",
    request: "Request",
    reading: "Reading | None",
    stdout: Console,
    stderr: Console,
    *,
    as_json: bool,
) -> "Result":
    """Generates, and prints the pieces as they come unless they go into JSON. Ctrl-C ends the
    command after what there is."""
    from mmspec.reading import AnswerPieces

    palette, is_interrupted = Palette(), False
    bar, answer = ReadingBar(stderr), AnswerWriter(stdout, stderr, palette)
    stream = engine.stream(request, on_prefill=bar.update)
    try:
        with bar, answer, stream:
            told: Iterable[Piece] = stream
            if reading is not None and not as_json:
                told = AnswerPieces(stream, reading)
            for piece in told:
                bar.stop()
                if not as_json:
                    answer.write(piece)
    except KeyboardInterrupt:
        is_interrupted = True
    if is_interrupted:
        result = stream.result
        if as_json:
            values = {**_values(result, reading), "finish_reason": "interrupted"}
            typer.echo(json.dumps(values))
        chosen = counted(len(result.tokens), "token")
        stderr.print(f"Interrupted after {chosen} · seed {result.seed}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if not as_json:
        if has_colour(stdout):
            stderr.print(Text.assemble("\n", palette.legend()))
        tell(stderr, closing_line(stream.result))
    return stream.result


def _values(result: "Result", reading: "Reading | None") -> JsonObject:
    """The answer as it was decoded; of a thinking model its parts beside it."""
    parts = {} if reading is None else reading.answer_of_tokens(result).parts
    return {**result_values(result), **parts}
