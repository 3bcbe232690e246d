"""A small vision-language model at three tasks, with drafts and without: the same text, faster.

python scripts/demo.py            make demo
python scripts/demo.py --seed 7   other pictures and texts
python scripts/demo.py --svg a.svg
"""

import argparse
import io
import re
import time
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

import mmspec
from mmspec.cli.console import EXIT_DIFFERENT, EXIT_INTERRUPTED, mistakes_told, quiet_transformers
from mmspec.cli.render import Comparison, Palette
from mmspec.cli.showcase import Outcome, Task, closing_table, panel, source_view, verdict_lines
from mmspec.training.tiny.data import caption, quote, receipt

WIDTH = 100  # columns, at most
LEDGER_CHARS = 500  # where the bundled model quotes right in 9 of 10 ledgers
HEAD = "tiny-vlm/medusa"  # drafts what nothing can be copied for
RUNS = 3  # timed runs each, with drafts and plain in turn
FRAME_S = 0.04  # how long a terminal shows each step of the first run, which is not timed


def tasks(seed: int) -> list[Task]:
    """Pictures and texts of words that training never showed."""

    def rng(name: str) -> Random:
        return Random(f"demo/{name}/{seed}")

    page = receipt(rng("receipt"), held_out=True)
    shapes = caption(rng("caption"), held_out=True)
    ledger = quote(rng("quote"), held_out=True, num_chars=LEDGER_CHARS)
    lead = page.prompt_text.splitlines()[0]
    *entries, question = ledger.prompt_text.splitlines()
    return [
        Task("Transcribe a receipt", f"{lead} …", page),
        Task("Caption a picture", shapes.prompt_text, shapes),
        Task("Quote a document", f"({len(entries)} entries) {question}", ledger),
    ]


def play(engine: mmspec.Engine, task: Task, console: Console, palette: Palette) -> Outcome:
    """Shows the text as it comes, a frame a step; then times it, and shows what came of it."""
    sample = task.sample
    request = mmspec.Request(
        sample.prompt_text,
        images=() if sample.image is None else sample.image,
        max_new_tokens=len(sample.answer) + 40,
        temperature=0,
        seed=0,
    )
    source, pieces = source_view(sample, console), list[mmspec.Piece]()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        with engine.stream(request) as stream:
            for piece in stream:
                pieces.append(piece)
                if piece.drafter is None:  # the target's own token ends a step
                    live.update(panel(task, source, palette.coloured(pieces)), refresh=True)
                    time.sleep(FRAME_S if console.is_terminal else 0)
        text = palette.coloured(pieces)
        live.update(panel(task, source, text, Text("measuring …", style="dim")), refresh=True)
        outcome = Outcome(task, stream.result, [_timed(engine, request) for _ in range(RUNS)])
    console.print(panel(task, source, text, *verdict_lines(outcome)))
    return outcome


def _timed(engine: mmspec.Engine, request: mmspec.Request) -> Comparison:
    return Comparison(
        plain=engine.generate(request, speculate=False), drafted=engine.generate(request)
    )


def demo(engine: mmspec.Engine, seed: int, console: Console) -> int:
    """All tasks; returns the exit code."""
    palette = Palette([drafter.name for drafter in engine.drafters])
    console.print(Text.assemble(("mmspec", "bold"), "  the model's own text, faster"))
    console.print(palette.legend())
    outcomes = [play(engine, task, console, palette) for task in tasks(seed)]
    console.print(closing_table(outcomes))
    note = (
        f"Greedy, seed {seed}. Speeds: the fastest of {RUNS} runs each, after the prompt is read."
    )
    console.print(Text(f"  {note}", style="dim"))
    is_same = all(outcome.comparison.is_identical for outcome in outcomes)
    return 0 if is_same else EXIT_DIFFERENT


def load(model: str | None) -> mmspec.Engine:
    """The bundled model with its head, or another one."""
    if model is not None:
        return mmspec.load(model)
    overrides = {"drafter.medusa.path": HEAD}
    return mmspec.load("tiny-vlm", drafter="prompt_lookup+medusa", overrides=overrides)


def as_svg(console: Console) -> str:
    """What a recording console was given, in whatever fixed-width font the viewer has."""
    svg = console.export_svg(title="make demo")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="other pictures and texts")
    parser.add_argument("--model", help="a folder, in place of the bundled one")
    parser.add_argument("--svg", metavar="FILE", help="what was shown, as a picture")
    options = parser.parse_args()
    console = Console(highlight=False, record=bool(options.svg))
    if options.svg and not console.is_terminal:  # a picture has colours wherever it is made
        console = Console(
            highlight=False, record=True, color_system="truecolor", file=io.StringIO()
        )
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    quiet_transformers()
    torch.set_num_threads(1)  # the model is too small to gain from more
    try:
        with mistakes_told(Console(stderr=True)):
            exit_code = demo(load(options.model), options.seed, console)
        if options.svg:
            Path(options.svg).write_text(as_svg(console), encoding="utf-8")
        return exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
