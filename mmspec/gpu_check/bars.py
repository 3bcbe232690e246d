"""Bars: what was promised of a GPU, beside what was found there, each with a verdict."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Verdict = Literal["met", "missed", "not measured"]
Found = Mapping[str, Any]  # a section, as `SectionResult` is written
LARGE = "llama-3-8b"
COPYING, LEAST = 3.0, 0.97  # beside plain: where the answer is a copy, and anywhere
NODES_RATIO = {4096: 1.2, 32_768: 1.6}  # score of 64 nodes beside one, by context
ROOFLINE, BEYOND_EAGER = 0.70, 3.0
LEAST_CHANCE = 0.02  # of rates that differ as much where neither is higher
# Nodes x group, and how near to the quickest backend the ladder's and our own kernel have to be.
FACTORS = ((64, 0.9), (1 << 30, 0.7))
_ENDED = re.compile(r"\w+: (crashed|out of time|error): ")  # who was at work when a process ended


@dataclass(frozen=True)
class Bar:
    """One promise. `low` and `high` hold the median with 95%, where there are several values."""

    number: int
    what: str
    bar: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "not measured"
    note: str = ""

    @property
    def shown(self) -> str:
        """The value with its interval."""
        if self.value is None:
            return "-"
        text = f"{self.value:.3g}"
        return text if self.low is None else f"{text} ({self.low:.3g} to {self.high:.3g})"


def verdicts(sections: Mapping[str, Found]) -> Iterator[Found]:
    """Of what the sections found until now, as it is written."""
    for bar in bars(sections):
        yield asdict(bar)


def bars(sections: Mapping[str, Found]) -> Iterator[Bar]:
    """All promises, in order; those that nothing is known of say so."""
    yield from _conformance(sections)
    yield from _attention(_of(sections, "attention").get("table") or [])
    yield from _plain(_of(sections, "plain"))
    yield from _nodes(_of(sections, "timings"))
    yield from _exactness(sections.get("exactness", {}))
    yield from _speed(_of(sections, "speed"))


def _of(sections: Mapping[str, Found], name: str) -> Found:
    found: Found = sections.get(name, {}).get("found", {})
    return found


def _conformance(sections: Mapping[str, Found]) -> Iterator[Bar]:
    what, bar = "attention conformance: wrong cases", "0, of each backend"
    section = sections.get("kernels", {})
    tallies = section.get("found", {}).get("attention")
    if not tallies:
        yield Bar(1, what, bar)
        return
    lines = section.get("failures", ())
    wrong = [line for line in lines if line.startswith("attention by") or _ENDED.match(line)]
    told = ", ".join(
        f"{name} {tally['passed']} passed, {len(tally['declined'])} declined"
        + (f", {tally['left_out']} left out" if tally.get("left_out") else "")
        for name, tally in tallies.items()
    )
    yield _judged(Bar(1, what, bar), float(len(wrong)), not wrong, note=told)


def _attention(table: Sequence[Found]) -> Iterator[Bar]:
    """The worst shape of each class: how near the ladder's choice and our kernel come to the
    quickest."""
    lowest = 0
    for most, factor in FACTORS:
        name = f"up to {most} pairs" if most < 1 << 30 else f"above {lowest} pairs"
        own = [row for row in table if lowest < row.get("pairs", 0) <= most and row["us"]]
        lowest = most
        for whose in ("chosen", "triton"):
            label = "the ladder's choice" if whose == "chosen" else "the Triton kernel"
            shares = {
                row["shape"]: row["us"][row["best"]] / row["us"][name_of]
                for row in own
                if (name_of := row["chosen"] if whose == "chosen" else "triton") in row["us"]
            }
            bar = Bar(1, f"{label} beside the quickest backend, {name}", f">= {factor}")
            if shares:
                worst = min(shares, key=lambda shape: shares[shape])
                note = f"worst of {len(shares)} shapes: {worst}"
                bar = _judged(bar, shares[worst], shares[worst] >= factor, note=note)
            yield bar


def _plain(found: Found) -> Iterator[Bar]:
    share = Bar(2, "plain decoding, 8B at 4k: share of the roofline", f">= {ROOFLINE}")
    yield _by_spread(share, found.get("roofline_share"), ROOFLINE)
    beside = Bar(2, "plain decoding beside transformers' generate (eager)", f">= {BEYOND_EAGER} x")
    yield _by_spread(beside, found.get("speed beside eager, dynamic cache"), BEYOND_EAGER)


def _nodes(found: Found) -> Iterator[Bar]:
    for context, most in NODES_RATIO.items():
        bar = Bar(3, f"score of 64 nodes beside one, 8B at {context}", f"<= {most}")
        scores = found.get(f"{LARGE} at {context}", {}).get("graph", {})
        yield _by_spread(bar, scores.get("ratio_of_64"), most, is_least=False)


def _exactness(section: Found) -> Iterator[Bar]:
    found: Found = section.get("found", {})
    rates = found.get("parted_per_token", {})
    bugs = [line for line in section.get("failures", ()) if "bitwise" not in line]
    within = Bar(4, "bf16: first differences beyond rounding", "0")
    is_known = any(isinstance(rows, list) for rows in found.values())
    yield _judged(within, float(len(bugs)), not bugs) if is_known else within
    for sampling in ("greedy", "T=1"):
        what = f"bf16, {sampling}: parting a token, beside plain in a batch of 3"
        bar = Bar(4, what, "no higher")
        known = rates.get(sampling)
        own, plain = (known or {}).get("speculative"), (known or {}).get("plain, 3 rows")
        if own and plain and own["tokens"] and plain["tokens"]:
            value = own["parted"] / max(own["tokens"], 1)
            other = plain["parted"] / max(plain["tokens"], 1)
            note = f"plain {other:.2g}; {own['parted']} of {own['tokens']} tokens, "
            note += f"plain {plain['parted']} of {plain['tokens']}"
            note += f"; a chance of {known['chance']:.2g}"
            bar = _judged(bar, value, known["chance"] >= LEAST_CHANCE, note=note)
        yield bar
    bitwise = [row for name, rows in found.items() if name.endswith(", bitwise") for row in rows]
    bar = Bar(4, "bitwise mode: share of identical texts", "1")
    if bitwise:
        texts = sum(row["texts"] for row in bitwise)
        share = sum(row["identical"] for row in bitwise) / max(texts, 1)
        bar = _judged(bar, share, share == 1.0, note=f"{texts} texts")
    yield bar


def _speed(found: Found) -> Iterator[Bar]:
    tasks = {
        name: {method: row for method, row in rows.items() if row.get("spread")}
        for name, rows in found.items()
        if isinstance(rows, dict) and "mmspec plain" in rows
    }
    best = [
        max((row["spread"]["median"], name, method) for method, row in rows.items())
        for name, rows in tasks.items()
        if name.startswith(("transcribing", "quoting")) and rows
    ]
    each = [
        (row["spread"]["median"], name, method)
        for name, rows in tasks.items()
        for method, row in rows.items()
        if method != "mmspec plain"
    ]
    copying = Bar(5, "copying beside plain, real size and acceptance", f">= {COPYING} x")
    never = Bar(5, "any method beside plain, the worst", f">= {LEAST} x")
    for bar, known, wanted in ((copying, best, COPYING), (never, each, LEAST)):
        if known:
            _, name, method = min(known)
            spread = tasks[name][method]["spread"]
            bar = _by_spread(bar, spread, wanted, note=f"{name}: {method}")
        yield bar


def _by_spread(
    bar: Bar, spread: Found | None, wanted: float, *, is_least: bool = True, note: str = ""
) -> Bar:
    """`spread` as `mmspec.bench.interval` writes it."""
    if not spread:
        return bar
    value, told = spread["median"], note or f"{len(spread['values'])} pairs"
    holds = value >= wanted if is_least else value <= wanted
    return replace(_judged(bar, value, holds, note=told), low=spread["low"], high=spread["high"])


def _judged(bar: Bar, value: float, holds: bool, *, note: str = "") -> Bar:
    verdict: Verdict = "met" if holds and not math.isnan(value) else "missed"
    return replace(bar, value=value, verdict=verdict, note=note)
