"""`mmspec chat`: a conversation in the terminal; what was said before is not computed again."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.text import Text

from mmspec.cli import options
from mmspec.cli.console import (
    consoles,
    mistake_text,
    mistakes_told,
    quiet_transformers,
    tell,
)
from mmspec.cli.loading import Loading
from mmspec.cli.options import PROMPT, SAMPLING, option
from mmspec.cli.render import AnswerWriter, Palette
from mmspec.errors import InputError, MmspecError
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec import Chat, Engine, Result

_HELP = """\
/image PATH   show an image with the next question
/new          begin a new conversation
/help         this list
/quit         end (or Ctrl-D)
Ctrl-C ends an answer early; what there is of it stays in the conversation."""


def chat(
    model: options.Model,
    image: Annotated[
        list[str] | None,
        option("PATH", "An image for the first question; may be repeated.", PROMPT),
    ] = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: Annotated[
        int | None, option("N", "The same seed gives the same texts.", SAMPLING)
    ] = None,
    drafter: options.Drafter = None,
    config: options.ConfigName = None,
    overrides: options.Overrides = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Talk with a model. Questions are read from stdin, a line each; answers go to stdout, what the
    model thinks before them to stderr."""
    stdout, stderr = consoles()
    with mistakes_told(stderr):
        loading = Loading(model, config, overrides, dtype, device, drafter)
        quiet_transformers()
        from mmspec.requests import build_request

        asked_for = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
        }
        # A wrong one is told now, not at each question.
        build_request("", {**asked_for, "seed": seed})
        with stderr.status("Loading the model"):
            engine = loading.load()
        conversation = _Conversation(engine, system, asked_for, stdout, stderr)
        for path in image or ():
            conversation.show(path)
        conversation.seed = secrets.randbits(32) if seed is None else seed
        if stderr.is_terminal:
            stderr.print(Text(f"{model} · /help lists what else can be typed", style="dim"))
        for line in typed_lines(stderr):
            if not conversation.take(line.strip()):
                break


class _Conversation:
    """Reads lines: questions, and commands that begin with a slash."""

    def __init__(
        self,
        engine: "Engine",
        system: str | None,
        options: dict[str, Any],
        stdout: Console,
        stderr: Console,
    ) -> None:
        self.images: list[str] = []  # shown with the next question
        self.seed = 0
        self._engine = engine
        self._system = system
        self._options = options
        self._stdout, self._stderr = stdout, stderr
        self._palette = Palette()
        self._chat = self._begin()

    def take(self, line: str) -> bool:
        """Answers, or does what the command says; False at the end of the conversation."""
        command, _, argument = line.partition(" ")
        if command == "/quit":
            return False
        try:
            if command == "/image":
                if not argument:
                    raise InputError("/image: no file; expected /image PATH")
                self.show(argument.strip())
            elif command == "/new":
                self._chat, self.images = self._begin(), []
            elif command == "/help":
                self._stderr.print(Text(_HELP, style="dim"))
            elif command.startswith("/") and "/" not in command[1:]:
                raise InputError(f"no command {command!r}; expected /image, /new, /help or /quit")
            elif line:
                self._answer(line)
        except MmspecError as error:
            if self._chat.messages:  # which are a part of the prompt
                way_out = "shorten the question, or begin a new conversation: /new"
                error = InputError(str(error).replace("shorten the prompt", way_out))
            self._stderr.print(mistake_text(error), soft_wrap=True)
        return True

    def show(self, image: str) -> None:
        """With the next question. Raises InputError for what is no image."""
        from mmspec.inputs import open_image

        inputs = self._engine.inputs
        try:
            open_image(image, limits=inputs.limits if inputs is not None else None)
        except OSError as error:  # of the disk: the conversation goes on without it
            raise InputError(f"/image: {error}") from error
        self.images.append(image)

    def _begin(self) -> "Chat":
        return self._engine.chat(system=self._system, **self._options)

    def _answer(self, question: str) -> None:
        status = self._stderr.status("Reading")
        images, self.images = self.images, []  # also where it fails, or every question would
        stream = self._chat.stream_answer(
            question,
            images=images,
            seed=(self.seed + len(self._chat.messages)) % 2**64,
            on_prefill=lambda done, of: status.update(
                f"Reading: {done:,} of {counted(of, 'token')}"
            ),
        )
        answer = AnswerWriter(self._stdout, self._stderr, self._palette)
        try:
            with status, stream, answer:
                for piece in stream:
                    status.stop()
                    answer.write(piece)
        except KeyboardInterrupt:
            self._stderr.print(Text("interrupted", style="dim"))
        tell(self._stderr, turn_line(stream.result))


def turn_line(result: "Result") -> Text:
    """An answer in figures: its speed, and how much of its prompt was there already."""
    stats = result.stats
    parts = [
        counted(stats.new_tokens, "token"),
        f"{stats.tokens_per_step:.2f} a step",
        f"{stats.tokens_per_second:,.0f} tokens/s",
        f"{stats.reused_tokens:,} of {counted(stats.prompt_tokens, 'prompt token')} reused",
    ]
    if result.finish_reason == "length":
        parts.append("ended by length")
    return Text(" · ".join(parts), style="dim")


def typed_lines(console: Console) -> Iterator[str]:
    """What is typed, until the input ends."""
    is_edited = sys.stdin.isatty() and sys.stdout.isatty()  # else input() asks no readline
    if is_edited:
        with suppress(ImportError):  # Windows' consoles edit by themselves
            import readline  # noqa: F401  # the arrow keys, and the lines before
    prompt = "› " if console.is_terminal else ""
    while True:
        try:
            yield input(prompt) if is_edited else console.input(prompt)
        except KeyboardInterrupt:  # as a shell does: what was typed goes, the conversation stays
            if not sys.stdin.isatty():
                return
            console.print(Text("\n/quit or Ctrl-D ends", style="dim"))
        except EOFError:
            if console.is_terminal:
                console.print()
            return
