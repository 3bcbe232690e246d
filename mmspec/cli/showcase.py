"""A question with a known answer, shown in the terminal: what the model sees, what it says, what
the drafts were worth."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mmspec.cli.console import has_colour
from mmspec.cli.pairs import Pairs
from mmspec.cli.picture import picture
from mmspec.cli.render import Comparison, sameness, speed_bars
from mmspec.requests import Result
from mmspec.training.tiny.data import Sample


@dataclass(frozen=True)
class Task:
    """A question with its known answer."""

    title: str
    asks: str  # the prompt in short
    sample: Sample


@dataclass(frozen=True)
class Outcome:
    """What came of a task: the answer that was shown, and the timed runs."""

    task: Task
    answer: Result
    pairs: Sequence[Comparison]

    @property
    def runs(self) -> Pairs:
        return Pairs(self.pairs)

    @property
    def comparison(self) -> Comparison:
        """The answer with a run that differs from it, where there is one."""
        return self.runs.beside(self.answer)

    @property
    def character_error(self) -> float:
        """Edit distance over the right answer's length. The model's own: drafts have no part."""
        # Imported here, since transformers then gives advice that `quiet_transformers` turns off.
        from mmspec.training.tiny.evaluate import edit_distance

        wanted = self.task.sample.answer
        return edit_distance(self.answer.text, wanted) / len(wanted)


def panel(
    task: Task, source: RenderableType | None, text: Text, *below: RenderableType
) -> RenderableType:
    """What the model sees at the left, what it says at the right."""
    text.rstrip()
    right = Group(Text(f"› {task.asks}\n", style="dim"), text, Text(), *below)
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    if source is not None:
        grid.add_column()
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(*([right] if source is None else [source, right]))
    title = Text(task.title, style="bold not dim")
    return Panel(grid, title=title, title_align="left", box=ROUNDED, border_style="dim")


def verdict_lines(outcome: Outcome) -> list[RenderableType]:
    """Speed, sameness and rightness."""
    per_step, error = outcome.runs.tokens_per_step, outcome.character_error
    right = Text("✓ the right answer, to the last character", style="green")
    if error:
        right = Text(f"● the model's own character error: {error:.1%}", style="yellow")
    return [
        speed_bars(outcome.runs.speeds, columns=12),
        Text.assemble(
            f"{per_step:.1f} tokens a step, ",
            (f"{outcome.runs.ratio:.1f}x", "bold" if outcome.runs.is_gain else "dim"),
            " plain decoding",
        ),
        sameness(outcome.comparison),
        right,
    ]


def closing_table(outcomes: Sequence[Outcome]) -> Table:
    """All tasks in figures."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in ("", "tokens", "a step", "tokens/s", "plain", "ratio", "same", "answer"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for outcome in outcomes:
        drafted, plain = outcome.runs.speeds.values()
        is_same, error = outcome.comparison.is_identical, outcome.character_error
        table.add_row(
            outcome.task.title,
            f"{outcome.answer.stats.new_tokens}",
            f"{outcome.runs.tokens_per_step:.2f}",
            f"{drafted:,.0f}",
            f"{plain:,.0f}",
            Text(f"{outcome.runs.ratio:.2f}x", style="bold" if outcome.runs.is_gain else "dim"),
            Text("yes", style="green") if is_same else Text("NO", style="bold red"),
            Text(f"{error:.1%} off", style="yellow") if error else Text("right", style="green"),
        )
    return table


def source_view(sample: Sample, console: Console) -> RenderableType | None:
    """What the model is asked about: the picture, where it can be drawn, or the document."""
    is_wide = console.width >= 100
    if sample.image is None:
        return _document(sample, columns=48 if is_wide else 32)
    if not has_colour(console):
        return None
    rows = 24 if is_wide and console.height >= 30 else 16
    return picture(sample.image, columns=2 * rows, rows=rows)


def _document(sample: Sample, *, columns: int, rows: int = 16) -> Text:
    """The lines round the one that is asked for."""
    lines = sample.prompt_text.splitlines()[:-1]
    at = lines.index(sample.answer)
    first = max(0, min(at - rows // 2, len(lines) - rows))
    text = Text(no_wrap=True)
    for line in lines[first : first + rows]:
        shown = line if len(line) <= columns else line[: columns - 1] + "…"
        text.append(f"{shown}\n", style="bold" if line == sample.answer else "dim")
    text.rstrip()
    return text
