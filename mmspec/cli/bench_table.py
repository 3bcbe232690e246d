"""What a person sees of a benchmark: a table a task, and what its figures mean."""

from enum import Enum, auto

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from mmspec.bench.interval import Spread
from mmspec.bench.machine import Machine
from mmspec.bench.methods import PLAIN, TRANSFORMERS
from mmspec.bench.report import BEST_LOOKUP, NOTES, MethodRow, Ratios, Report, TaskReport
from mmspec.cli.console import printable
from mmspec.words import counted

_BASELINES = {
    TRANSFORMERS: "x\ntransformers",
    BEST_LOOKUP: "x its\nlookup",
    PLAIN: "x our\nplain",
}
_NAME_COLUMNS = 24  # "transformers lookup 10 ★"


def heading(model: str, dtype: str, machine: Machine, *, pairs: int) -> Text:
    """Model and machine, in two lines."""
    load = "" if machine.load_before is None else f", load before {machine.load_before:.2f}"
    runs = counted(pairs, "interleaved pair")
    where = (
        f"{machine.gpu or machine.cpu} · {machine.threads} of {machine.cores} cores{load} · "
        f"torch {machine.torch}, transformers {machine.transformers} · {runs}"
    )
    return Text.assemble((f"{model}", "bold"), f" in {dtype}, greedy\n", (where, "dim"))


def task_table(report: TaskReport, *, width: int) -> Table:
    """One task: a row a method, ratios against each baseline. What `width` columns do not hold is
    left out: other baselines' intervals, two columns, the last interval, other baselines."""
    room = Console(width=10**4)
    for detail in Detail:
        table = _table(report, detail)
        if room.measure(table).maximum <= width:
            break
    return table


class Detail(Enum):
    """How much a table says, the most first."""

    ALL = auto()
    ONE_INTERVAL = auto()
    FEW_COLUMNS = auto()
    NO_INTERVAL = auto()
    ONE_BASELINE = auto()


def _table(report: TaskReport, detail: Detail) -> Table:
    baselines = [b for b in _BASELINES if any(b in row.versus for row in report.rows)]
    main = baselines[0] if baselines else PLAIN
    is_least = detail is Detail.ONE_BASELINE
    baselines = baselines[:1] if is_least else baselines
    has_all_columns = detail in (Detail.ALL, Detail.ONE_INTERVAL)
    has_interval = has_all_columns or detail is Detail.FEW_COLUMNS
    with_interval = baselines if detail is Detail.ALL else [main] if has_interval else []
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1 if has_all_columns else 0),
        pad_edge=False,
        title=_title(report),
        title_justify="left",
        title_style="",
    )
    # A long name goes over several lines; tables of all tasks stand in line.
    least = None if is_least else _NAME_COLUMNS
    table.add_column("", overflow="fold", min_width=least, max_width=_NAME_COLUMNS)
    names = ["tokens/s", *(_BASELINES[b] for b in baselines)]
    names += ["by CPU\ntime", "end\nto end"] if has_all_columns else []
    for name in (*names, "a step", "same"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        if row.refused is not None:
            table.add_row(Text(row.method, style="dim"), Text("refused", style="yellow"))
            continue
        versus = row.versus.get(main)
        figures = [versus.decode_cpu, versus.end_to_end] if versus else [None, None]
        best = row.method == report.best_lookup
        is_ours = row.method.startswith("mmspec")
        table.add_row(
            Text.assemble((row.method, "bold" if is_ours else ""), " ★" if best else ""),
            f"{row.tokens_per_second:,.1f}",
            *(_ratio(row, one, with_interval=one in with_interval) for one in baselines),
            *(_median(one) for one in figures if has_all_columns),
            f"{row.acceptance_length:.2f}",
            _sameness(row, report.prompts),
        )
    return table


def _title(report: TaskReport) -> Text:
    facts = [
        f"{counted(report.prompts, 'prompt')} of {report.prompt_tokens:,.0f} tokens",
        f"{report.new_tokens:,} new tokens",
    ]
    facts += [f"{counted(report.cut, 'prompt')} cut"] if report.cut else []
    facts += [f"{report.left_out} too long, left out"] if report.left_out else []
    facts += [f"{counted(report.looped, 'text')} cut at a loop"] if report.looped else []
    return Text.assemble((report.task, "bold"), (f"   {' · '.join(facts)}", "dim"))


def _ratio(row: MethodRow, baseline: str, *, with_interval: bool) -> Text:
    ratios: Ratios | None = row.versus.get(baseline)
    if ratios is None or ratios.decode is None or row.method == baseline:
        return Text("1" if row.method == baseline else "–", style="dim")
    shown = ratios.decode
    style = "green" if shown.low > 1 else "red" if shown.high < 1 else ""
    interval = f" {shown.low:.2f}–{shown.high:.2f}" if with_interval else ""
    return Text.assemble((f"{shown.median:.2f}", f"bold {style}".strip()), (interval, "dim"))


def _median(of: Spread | None) -> str:
    return "–" if of is None else f"{of.median:.2f}"


def _sameness(row: MethodRow, prompts: int) -> Text:
    shown = f"{row.identical}/{prompts}"
    return Text(shown, style="green" if row.identical == prompts else "bold red")


def closing_lines(report: Report, tokenizer: PreTrainedTokenizerBase, *, dtype: str) -> Text:
    """What the figures mean, what was refused and where texts differ."""
    lines = [Text(note, style="dim") for note in (_interval_note(report), *NOTES)]
    refused: dict[tuple[str, str], list[str]] = {}
    for task in report.tasks:
        for row in task.rows:
            if row.refused is not None:
                refused.setdefault((row.method, row.refused), []).append(task.task)
            for one in row.differences:
                got, expected = (
                    "the end" if token is None else repr(tokenizer.decode([token]))
                    for token in (one.got, one.expected)
                )
                where = f"{task.task}, prompt {one.case + 1}, token {one.token}"
                told = f"✗ {row.method}: {where}: {got}, {report.reference} {expected}"
                style = "bold red" if row.method.startswith("mmspec") else "yellow"
                lines.insert(0, Text(printable(told), style=style))
    for (method, why), tasks in refused.items():
        told = f"refused: {method} ({', '.join(tasks)}): {' '.join(why.split())[:400]}"
        lines.insert(0, Text(printable(told), style="yellow"))
    if not report.is_exact and dtype not in ("float32", "float64"):
        told = f"in {dtype} near-ties may part texts; mmspec check tells them from errors"
        lines.insert(0, Text(told, style="yellow"))
    lines = [*_summary_lines(report), *lines]
    if report.is_exact:
        lines.insert(0, Text(f"✓ every text of mmspec is that of {report.reference}", "green"))
    return Text("\n").join(lines)


def _summary_lines(report: Report) -> list[Text]:
    """Each method of ours over all tasks."""
    lines = []
    for method in dict.fromkeys(one.method for one in report.summaries):
        own = [one for one in report.summaries if one.method == method]
        parts = [
            f"{one.geometric_mean:.2f}x {one.baseline} (worst {one.worst:.2f}x, {one.worst_task})"
            for one in own
        ]
        lines.append(Text.assemble((method, "bold"), f" over all tasks: {', '.join(parts)}"))
    return lines


def _interval_note(report: Report) -> str:
    spreads = [
        ratios.decode
        for task in report.tasks
        for row in task.rows
        for ratios in row.versus.values()
        if ratios.decode is not None
    ]
    if not spreads:
        return "No ratio could be measured."
    coverage = min(spread.coverage for spread in spreads)
    return f"Intervals hold the median with {coverage:.1%} ({counted(report.pairs, 'pair')})."
