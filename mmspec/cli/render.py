"""What a person sees of an answer: text coloured by drafter, legend, closing line, sameness."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from mmspec.beginnings import num_shared
from mmspec.cli.console import printable, write
from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec.requests import Result
    from mmspec.stream import Piece

_COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "bright_red")
_GOOD, _BAD, _ASIDE = "green", "bold red", "dim"
_EIGHTHS = " ▏▎▍▌▋▊▉"


class Palette:
    """A colour for each drafter, in the order in which they are first seen; the target's own
    words have none."""

    def __init__(self, drafters: Iterable[str] = ()) -> None:
        self._colours: dict[str, str] = {}
        for drafter in drafters:
            self.colour(drafter)

    def colour(self, drafter: str | None) -> str:
        if drafter is None:
            return ""
        return self._colours.setdefault(drafter, _COLOURS[len(self._colours) % len(_COLOURS)])

    def coloured(self, pieces: Iterable["Piece"]) -> Text:
        """The pieces as one text."""
        text = Text(overflow="fold")
        for piece in pieces:
            text.append(printable(piece.text), style=self.colour(piece.drafter))
        return text

    def legend(self) -> Text:
        """Which colour is whose."""
        parts = [Text.assemble(("■ ", c), f"drafted by {n}") for n, c in self._colours.items()]
        return Text("   ").join([*parts, Text("□ chosen by the model itself")])


class AnswerWriter:
    """Writes an answer as it comes, coloured by who drafted it: what is said to stdout, what the
    model thinks before to stderr, dimmed. A context manager, which ends the last line."""

    def __init__(self, stdout: Console, stderr: Console, palette: Palette) -> None:
        self._consoles = {False: stdout, True: stderr}  # by whether it is reasoning
        self._palette = palette
        self._last: Piece | None = None

    def write(self, piece: "Piece") -> None:
        if self._last is not None and self._last.is_reasoning != piece.is_reasoning:
            self._break_line(self._consoles[True])
            write(self._consoles[True], "\n")
        dim = f"{_ASIDE} " if piece.is_reasoning else ""
        style = f"{dim}{self._palette.colour(piece.drafter)}".strip()
        write(self._consoles[piece.is_reasoning], piece.text, style)
        self._last = piece

    def __enter__(self) -> "AnswerWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if self._last is not None:
            self._break_line(self._consoles[self._last.is_reasoning])

    def _break_line(self, console: Console) -> None:
        assert self._last is not None
        if not self._last.text.endswith("\n"):
            write(console, "\n")


@dataclass(frozen=True)
class Comparison:
    """One request decoded with drafts and plainly, from the same seed."""

    drafted: "Result"
    plain: "Result"

    @property
    def is_identical(self) -> bool:
        return (self.drafted.tokens, self.drafted.text) == (self.plain.tokens, self.plain.text)

    @property
    def ratio(self) -> float:
        """How many times plain decoding's speed; 0 where the text is too short to tell."""
        plain = self.plain.stats.tokens_per_second
        return self.drafted.stats.tokens_per_second / plain if plain else 0.0

    @property
    def speeds(self) -> dict[str, float]:
        """Tokens a second."""
        return {
            "with drafts": self.drafted.stats.tokens_per_second,
            "plain": self.plain.stats.tokens_per_second,
        }


def closing_line(result: "Result") -> Text:
    """The answer in figures."""
    return Text(result.summary, style=_ASIDE)


def speed_bars(speeds: Mapping[str, float], *, columns: int = 30, colour: str = _GOOD) -> Text:
    """A bar a line, as long as its tokens a second; the first one is the coloured one."""
    fastest, widest = max(speeds.values()), max(map(len, speeds))
    lines = []
    for index, (name, speed) in enumerate(speeds.items()):
        eighths = round(8 * columns * speed / fastest) if fastest else 0
        bar = ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).strip().ljust(columns)
        style = colour if index == 0 else _ASIDE
        lines.append(Text.assemble(f"{name:{widest}}  ", (bar, style), f" {speed:7,.0f} tokens/s"))
    return Text("\n").join(lines)


def sameness(comparison: Comparison) -> Text:
    """Whether the two texts are the same, and if not, where they part."""
    if comparison.is_identical:
        tokens = counted(len(comparison.plain.tokens), "token")
        return Text(f"✓ identical texts: {tokens}", style=_GOOD)
    drafted, plain = comparison.drafted.tokens, comparison.plain.tokens
    at = num_shared(drafted, plain)

    def shown(tokens: tuple[int, ...]) -> str:
        return str(tokens[at]) if at < len(tokens) else "the end"

    return Text(
        f"✗ the texts differ: first at token {at}, with drafts {shown(drafted)}, "
        f"plain {shown(plain)}",
        style=_BAD,
    )
