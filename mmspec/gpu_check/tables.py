"""What was found, as tables for a page of the documentation, and what to set by it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmspec.gpu_check.bars import FACTORS, bars

Found = Mapping[str, Any]  # a section, as `SectionResult` is written
_ENOUGH = 0.95  # of the quickest: what is no further from it keeps its place


def bar_table(sections: Mapping[str, Found]) -> Iterator[str]:
    """Every bar, what was found, and whether it is met."""
    yield "| bar | wanted | found (95% of the median) | verdict | |"
    yield "|---|---|---|---|---|"
    for bar in bars(sections):
        yield f"| {bar.number}. {bar.what} | {bar.bar} | {bar.shown} | {bar.verdict} | {bar.note} |"


def attention_table(sections: Mapping[str, Found]) -> Iterator[str]:
    """Microseconds of each backend by shape."""
    table = sections.get("attention", {}).get("found", {}).get("table") or []
    if not table:
        return
    names = list(dict.fromkeys(name for row in table for name in row["us"]))
    yield f"| shape | {' | '.join(names)} | quickest | ladder |"
    yield f"|---|{'---|' * len(names)}---|---|"
    for row in table:
        cells = [f"{row['us'][name]:.1f}" if name in row["us"] else "-" for name in names]
        stars = [f"{c} *" if n in row["eager"] else c for n, c in zip(names, cells, strict=True)]
        yield f"| {row['shape']} | {' | '.join(stars)} | {row['best']} | {row['chosen']} |"
    yield "" if not any(row["eager"] for row in table) else "\\* called launch by launch"


def step_table(sections: Mapping[str, Found]) -> Iterator[str]:
    """Milliseconds of a score call by nodes, as recorded and as expected."""
    found = sections.get("timings", {}).get("found", {})
    rows = {  # drafts have others, where nothing is expected
        name: row
        for name, row in found.items()
        if isinstance(row, dict) and {"graph", "expected_ms"} <= row.keys()
    }
    if not rows:
        return
    nodes = list(next(iter(rows.values()))["graph"]["score_ms"])
    yield f"| model and context | {' | '.join(f'{n} nodes' for n in nodes)} | roofline share |"
    yield f"|---|{'---|' * len(nodes)}---|"
    for name, row in rows.items():
        times = row["graph"]["score_ms"]
        cells = " | ".join(f"{times[n]:.2f} ({row['expected_ms'][n]:.2f})" for n in nodes)
        yield f"| {name} | {cells} | {row['graph']['roofline_share']:.2f} |"


def suggestions(sections: Mapping[str, Found]) -> Iterator[str]:
    """What `CUDA_ORDERS` should be by the measured shapes, by number of pairs."""
    table = sections.get("attention", {}).get("found", {}).get("table") or []
    lowest = 0
    for most, _ in FACTORS:
        rows = [row for row in table if lowest < row.get("pairs", 0) <= most]
        lowest = most
        names = _captured(rows)
        if not names:
            continue
        losses = {name: _mean_share(rows, name) for name in names}
        order = sorted(names, key=lambda name: -losses[name])
        own = losses.get("triton", 0.0)
        if own >= _ENOUGH * losses[order[0]]:  # one launch, no package
            order = ["triton", *(name for name in order if name != "triton")]
        pairs = most if most < 1 << 30 else None
        shares = ", ".join(f"{name} {losses[name]:.2f}" for name in order)
        yield f"Order(range(9, 10), {pairs}, {(*order,)!r})  # of the quickest: {shares}"


def _captured(rows: Sequence[Found]) -> list[str]:
    """Backends that a graph took at every shape of these."""
    names = dict.fromkeys(name for row in rows for name in row["us"])
    return [n for n in names if all(n in row["us"] and n not in row["eager"] for row in rows)]


def _mean_share(rows: Sequence[Found], name: str) -> float:
    """How near to the quickest it comes, on average."""
    return sum(row["us"][row["best"]] / row["us"][name] for row in rows) / len(rows)
