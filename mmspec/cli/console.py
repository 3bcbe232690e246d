"""The terminal: what may be written to it, and how a user's mistake is told.

The answer goes to stdout and everything about it to stderr, so that `mmspec generate ... > file`
writes the answer alone.
"""

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.style import Style
from rich.text import Text

from mmspec.errors import MmspecError

EXIT_DIFFERENT, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130
_FILE_COLUMNS = 160  # in a pipe too: no table is cut where there is no edge
_BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def consoles() -> tuple[Console, Console]:
    """(stdout, stderr). Neither reads markup or emoji codes in what it is given."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal is no reason to fail
    plain = {"markup": False, "emoji": False, "highlight": False}
    both = Console(**plain), Console(stderr=True, **plain)  # type: ignore[arg-type]
    for console in both:
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _FILE_COLUMNS
    return both


def has_colour(console: Console) -> bool:
    """False in a pipe, under NO_COLOR and on terminals without ANSI codes."""
    return bool(console.color_system) and not console.no_color and not console.legacy_windows


def write(console: Console, text: str, colour: str = "") -> None:
    """Writes at once what a model said: escaped to a terminal, exactly as it is to anything else.

    Past rich's own printing, which drops some characters and turns tabs into spaces.
    """
    shown = printable(text) if console.is_terminal else text
    is_coloured = colour and has_colour(console)
    console.file.write(Style.parse(colour).render(shown) if is_coloured else shown)
    console.file.flush()


def tell(console: Console, text: Text) -> None:
    """Prints a paragraph: wrapped at words on a terminal, one line in a log or a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


def printable(text: str) -> str:
    """`text` with its control characters spelled out, all but newline and tab.

    What a model says may hold escape sequences: written to a terminal they could clear it, rename
    it or answer for its user. Marks that reorder a line's characters are spelled out as well.
    """
    return "".join(_spelled(char) if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    if char in "\n\t":
        return False
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in _BIDI_CONTROLS


def _spelled(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}"


@contextmanager
def mistakes_told(console: Console, *, exit_code: int = EXIT_MISTAKE) -> Iterator[None]:
    """A MmspecError becomes one red paragraph on `console` and the exit code."""
    try:
        yield
    except MmspecError as error:
        console.print(mistake_text(error), soft_wrap=True)
        raise SystemExit(exit_code) from error


def mistake_text(error: MmspecError) -> Text:
    return Text(printable(" ".join(str(error).split())), style="red")


def quiet_transformers() -> None:
    """No progress bars and advice of transformers between the lines of the answer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
