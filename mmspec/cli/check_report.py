"""What a person sees of a check: a table of ways, the first differences, and what they mean."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from mmspec.check import CheckReport, Comparison, Difference
from mmspec.check.stress import Stress
from mmspec.cli.console import printable
from mmspec.requests import Request
from mmspec.words import counted

_GOOD, _BAD, _UNSURE, _ASIDE = "green", "bold red", "yellow", "dim"


def heading(
    model: str, report: CheckReport, requests: Sequence[Request], *, max_new_tokens: int
) -> Text:
    """What was checked, in two lines."""
    pictures = sum(bool(request.images) for request in requests)
    seeds = len({one.sampling for one in report.comparisons}) - 1
    facts = [counted(len(requests), "prompt") + (f", {pictures} with pictures" if pictures else "")]
    facts += [f"greedy and {counted(seeds, 'seed')}" if seeds else "greedy"]
    facts += [f"{counted(max_new_tokens, 'token')} a text at most"]
    return Text.assemble((model, "bold"), f" in {report.dtype}\n", (" · ".join(facts), _ASIDE))


def check_table(report: CheckReport) -> Table:
    """A row a way of decoding: how many texts, and how many of their tokens, are plain
    decoding's."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for name in (
        "the same as plain decoding?",
        "greedy",
        "sampled",
        "same tokens",
        "drafts accepted",
    ):
        side: JustifyMethod = "left" if name.startswith("the") else "right"
        table.add_column(name, justify=side, overflow="fold")
    for way in dict.fromkeys(one.way for one in report.comparisons):
        own = [one for one in report.comparisons if one.way == way]
        greedy = [one for one in own if one.sampling == "greedy"]
        sampled = [one for one in own if one.sampling != "greedy"]
        accepted = sum(one.accepted for one in own)
        table.add_row(
            Text(way, style="" if own[0].is_ours else _ASIDE),
            _texts(greedy),
            _texts(sampled),
            f"{_share(sum(one.same_tokens for one in own), sum(one.tokens for one in own))}",
            f"{accepted:,}" if accepted else "–",
        )
    return table


def _texts(comparisons: Sequence[Comparison]) -> Text:
    if not comparisons:
        return Text("–", style=_ASIDE)
    texts, identical = (
        sum(getattr(one, name) for one in comparisons) for name in ("texts", "identical")
    )
    verdicts = {found.verdict for one in comparisons for found in one.differences.values()}
    style = _GOOD if not verdicts else _BAD if "bug" in verdicts else _UNSURE
    return Text(f"{identical}/{texts}", style=style)


def _share(part: int, whole: int) -> str:
    return "100%" if part == whole else f"{part / max(whole, 1):.2%}"


def difference_lines(comparison: Comparison, prompt: int, found: Difference) -> Text:
    """One difference: where, the texts round it, the margins beside the error, and the verdict."""
    is_bug = found.verdict == "bug"
    style = _BAD if is_bug else _UNSURE
    where = f"{comparison.way} · {comparison.sampling} · prompt {prompt + 1} · token {found.token}"
    lines = [
        Text.assemble(("✗ " if is_bug else "≈ ", style), (where, style)),
        Text.assemble(("  … ", _ASIDE), (_shown(found.before), _ASIDE)),
        Text.assemble("  plain ", (_token(found.plain), "bold"), "  ", _shown(found.plain_text)),
        Text.assemble("  here  ", (_token(found.other), "bold"), "  ", _shown(found.other_text)),
    ]
    if found.error is not None:
        assert found.plain_margin is not None and found.other_margin is not None
        lines.append(
            Text(
                f"  best - second: {found.plain_margin:.3g} plain, {found.other_margin:.3g} here · "
                f"logit error here {found.error:.3g}, rounding explains {found.bound:.3g}",
                style=_ASIDE,
            )
        )
    kind = "not explained by rounding" if is_bug else "near-tie"
    lines.append(Text.assemble("  ", (kind, style), f": {printable(found.why)}"))
    return Text("\n").join([*lines, Text()])


def _token(token: int | None) -> str:
    return "the end" if token is None else str(token)


def _shown(text: str) -> str:
    return printable(text.replace("\n", "⏎").replace("\t", "→"))


def closing_lines(report: CheckReport) -> Text:
    """The verdict, and what it means."""
    ours = [one for one in report.comparisons if one.is_ours]
    texts = counted(sum(one.texts for one in ours), "text")
    tokens = counted(sum(one.tokens for one in ours), "token")
    lines = []
    if report.is_identical:
        told = f"✓ identical to plain decoding: {texts}, {tokens}"
        lines.append(Text(told, style=_GOOD))
    else:
        bugs = [found for found in report.differences if found.verdict == "bug"]
        ties = len(report.differences) - len(bugs)
        rate = f"{len(report.differences):,} of {texts} differ, {tokens} compared"
        if bugs:
            told = (
                f"✗ {counted(len(bugs), 'difference')} not explained by rounding, "
                f"{counted(ties, 'near-tie')}"
            )
            lines.append(Text(f"{told}: {rate}", style=_BAD))
            lines.append(Text("  This is a bug. Please report it with the output of --json."))
        else:
            lines.append(Text(f"≈ near-ties only: {rate}", style=_UNSURE))
            lines.append(Text(near_tie_words(report.dtype), style=_ASIDE))
    if not report.accepted:
        drafters = {w for one in ours if (w := one.way.partition(",")[0]) != Stress.name}
        lines.append(
            Text(
                f"  No draft of {', '.join(sorted(d for d in drafters if ' ' not in d))} was "
                "accepted: of it this proves little. Give prompts whose answers copy.",
                style=_UNSURE,
            )
        )
    return Text("\n").join(lines)


def near_tie_words(dtype: str) -> str:
    """What a near-tie is."""
    better = "float64" if dtype == "float32" else "float32"
    return (
        f"A near-tie: two tokens whose scores are closer than the rounding of {dtype}. A forward "
        "over several tokens adds up in another order than a forward over one, and moves each "
        "score by about the logit error; which of the two is best is then decided by the order of "
        "the sums, not by the model. Both texts are the model's own within its rounding, and plain "
        "decoding parts likewise between batch sizes. In a higher precision they all but vanish: "
        f"--dtype {better}."
    )
