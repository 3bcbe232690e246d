"""What a training brought: a table, and a picture where matplotlib is installed."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmspec.words import counted

if TYPE_CHECKING:
    from mmspec.training.heads import Trained

PLOT = "training.png"


def report(console: Console, trained: "Trained", losses: Mapping[str, float]) -> None:
    """Prints the held-out acceptance by depth, before and after, and what the run took."""
    last, before, after = trained.last, trained.first_acceptance, trained.acceptance
    if after is not None and before is not None:
        table = Table("draft", "best, before", "best", f"one of {after.num_best}", box=None)
        for depth, share in enumerate(after.top_1):
            table.add_row(
                str(depth + 1),
                f"{before.top_1[depth]:.1%}",
                f"{share:.1%}",
                f"{after.top_k[depth]:.1%}",
            )
        console.print(table)
        console.print(
            f"{after.tokens_a_step:.2f} tokens a step in a chain of drafts (before: "
            f"{before.tokens_a_step:.2f}), over {counted(after.tokens, 'held-out token')}",
            soft_wrap=True,
        )
    if last is not None:
        shown = " · ".join(f"{name} {value:.3f}" for name, value in losses.items())
        parts = [
            counted(trained.parameters, "parameter"),
            counted(last.step, "step"),
            counted(last.tokens, "token"),
            f"{last.trained_s:,.0f} s",
            *([shown] if shown else []),
        ]
        console.print(Text(" · ".join(parts)), soft_wrap=True)


def write_plot(folder: Path) -> str | None:
    """Draws the log of a training folder; what is said of it, or None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # no pyplot: nothing is kept, no window is opened

    from mmspec.training.heads.loop import LOG, read_log

    lines = read_log(folder / "training" / LOG)
    steps = [line for line in lines if line["losses"]]
    evaluated = [line for line in lines if line["acceptance"]]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in steps[-1]["losses"] if steps else ():
        curve = [line["losses"].get(name) for line in steps]
        left.plot([line["step"] for line in steps], curve, label=name, linewidth=0.8)
    left.set_xlabel("step")
    left.set_ylabel("loss")
    left.set_yscale("log")
    depths = len(evaluated[-1]["acceptance"]["top_1"]) if evaluated else 0
    for depth in range(depths):
        shares = [line["acceptance"]["top_1"][depth] for line in evaluated]
        right.plot([line["step"] for line in evaluated], shares, label=f"draft {depth + 1}")
    right.set_xlabel("step")
    right.set_ylabel("share of held-out tokens said")
    right.set_ylim(0, 1)
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    path = folder / "training" / PLOT
    figure.savefig(path, dpi=120)
    return f"Drawn: {path}"
