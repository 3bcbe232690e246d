"""The tables of `mmspec plan`."""

from collections.abc import Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmspec.plan.measured import Compared, slower
from mmspec.plan.method import Method
from mmspec.plan.outlook import Outlook, Place, short


def heading(found: Outlook) -> Text:
    """Which model on which machine, and what is counted."""
    target, hardware = found.target, found.target.hardware
    shape = target.shape
    facts = [
        str(target.weights),
        f"{_bytes(target.weight_bytes)} of weights a step",
        f"{_bytes(target.row_bytes(1) - target.row_bytes(0))} of KV a token",
        f"{shape.group} query heads a KV head",
        *([f"{_bytes(shape.state_bytes)} of state a node"] if shape.state_bytes else []),
    ]
    text = Text.assemble(
        (f"{shape.name} on {hardware.name}", "bold"),
        f"  {', '.join(facts)}\n{hardware.bytes_per_s / 1e12:.3g} TB/s, "
        f"{hardware.gemm_flops / 1e12:.3g} TFLOP/s of matrix products, "
        f"{hardware.attention_flops / 1e12:.3g} of attention",
    )
    if hardware.host_s:
        text.append(f", {1000 * hardware.host_s:g} ms a forward at least")
    if any(place.is_beyond for place in found.places):
        text.append(f"\n* longer than the {short(shape.max_context)} that the model was made for")
    text.append("\nComputed, not measured: a roofline. What is accepted is assumed.", style="dim")
    return text


def score_table(found: Outlook, nodes: Sequence[int]) -> Table:
    """Milliseconds of a score call."""
    table = _table("A score call, ms by nodes", "batch", "context")
    for count in nodes:
        table.add_column(
            "1 (plain)" if count == 1 else str(count), justify="right", overflow="fold"
        )
    table.add_column("plain tokens/s", justify="right", overflow="fold")
    table.add_column("KV", justify="right")
    for place in found.places:
        table.add_row(
            *_where(place),
            *(f"{1000 * place.score_s[count]:.3g}" for count in nodes),
            f"{place.batch / place.plain_s:,.0f}",
            Text(_bytes(place.kv_bytes))
            if place.fits
            else Text(f"{_bytes(place.kv_bytes)}, no room", style="yellow"),
        )
    return table


def speed_tables(found: Outlook, methods: Sequence[Method]) -> Group:
    """Speed beside plain decoding, low and high, at the best draft length of each: a table a batch
    size, so that none is too wide for a terminal."""
    tables: list[Table] = []
    for batch, group in groupby(found.places, lambda place: place.batch):
        places = list(group)
        title = f"Speed beside plain decoding at batch {batch}, at the best draft length"
        table = _table(title, "drafter", "assumed")
        for place in places:
            table.add_column(_where(place)[1], justify="right", no_wrap=True)
        for index, method in enumerate(methods):
            low, high = method.range
            table.add_row(
                method.name,
                f"{low:g} / {high:g}" + ("" if method.assumed == "acceptance" else " tokens"),
                *(_speed(place, index) for place in places),
            )
        tables.append(table)
    return Group(*tables)


def pays_table(found: Outlook) -> Table:
    """From which context on each drafter is faster than plain decoding, at the low assumption."""
    batches = list(dict.fromkeys(one.batch for one in found.pays))
    table = _table("Contexts where it pays, at the low assumption", "drafter")
    for batch in batches:
        table.add_column(f"batch {batch}")
    for name, group in groupby(found.pays, lambda one: one.method):
        table.add_row(name, *(_coloured(one.text) for one in group))
    return table


def compared_table(compared: Sequence[Compared]) -> Group:
    """Predictions beside measurements."""
    table = _table(
        "Predictions beside measurements",
        "file", "model", "context", "nodes", "predicted, ms", "measured, ms", "ratio",
    )  # fmt: skip
    for one in compared:
        table.add_row(
            one.source,
            one.model,
            short(one.context),
            str(one.nodes),
            f"{1000 * one.predicted_s:.3g}",
            f"{1000 * one.measured_s:.3g}",
            f"{one.ratio:.2f}",
        )
    factor = slower(compared)
    spread = max(max(one.ratio / factor, factor / one.ratio) for one in compared)
    return Group(
        table,
        Text(
            f"Measured takes {factor:.2f} times the predicted, as the median; a call is off from "
            f"that by a factor of up to {spread:.2f}.",
            style="dim",
        ),
    )


def _table(title: str, *columns: str) -> Table:
    """In a narrow terminal words go over several lines: none is cut."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, title=title, title_justify="left"
    )
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _speed(place: Place, index: int) -> Text:
    prospect = place.prospects[index]
    low, high = prospect.low.ratio, prospect.high.ratio
    style = "green" if low >= 1.0 else "yellow" if high >= 1.0 else "red"
    return Text(f"{low:.2f}/{high:.2f}", style=style)


def _coloured(text: str) -> Text:
    styles = {"never": "red", "everywhere": "green"}
    return Text(text, style=styles.get(text, ""))


def _where(place: Place) -> tuple[str, str]:
    return str(place.batch), short(place.context) + "*" * place.is_beyond


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
