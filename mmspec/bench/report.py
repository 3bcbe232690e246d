"""Measurements -> the table's rows: speeds, ratios with their intervals, exactness."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mmspec.beginnings import num_shared
from mmspec.bench.interval import Spread, spread
from mmspec.bench.methods import PLAIN, TRANSFORMERS, Method
from mmspec.bench.run import Measurements
from mmspec.bench.timeline import Run

BEST_LOOKUP = "transformers' best lookup"
NOTES = (
    "A ratio is of one pair: all of a task's prompts decoded by both methods in turn, total tokens "
    "over total seconds. Shown is the median over the pairs with its interval of order statistics, "
    "which says how well the ratio is measured, not how it would be with other prompts.",
    "Decode speed counts what comes after the first tokens; end to end goes from processed prompt "
    "to the end of the call, ours turning tokens into text and transformers' not.",
    "A text ends where our plain decoding's begins to loop (a 20-gram seen three times), for all "
    "methods at the same token.",
    "Of transformers' prompt lookup the number of tokens that is fastest on the task counts (★), "
    "found afterwards; all other settings were the same for all tasks.",
    "Acceptance length is 1 + accepted / verifications.",
)


@dataclass(frozen=True)
class Difference:
    """Where a text first differs from the one it should be."""

    case: int
    token: int  # index in the generated text
    expected: int | None  # None: the text had ended
    got: int | None


@dataclass(frozen=True)
class Ratios:
    """How many times the speed of a baseline, pair by pair."""

    decode: Spread | None  # None: no token came after the first ones
    decode_cpu: Spread | None  # by CPU time of the process
    end_to_end: Spread | None
    end_to_end_cpu: Spread | None


@dataclass(frozen=True)
class MethodRow:
    """One method at one task."""

    method: str
    refused: str | None = None  # why; then the rest is empty
    tokens_per_second: float = 0.0  # after the first tokens, median over the pairs
    end_to_end_tokens_per_second: float = 0.0
    acceptance_length: float = 1.0
    identical: int = 0  # prompts whose text was the reference's in every pair
    differences: tuple[Difference, ...] = ()  # the first of each other prompt
    versus: Mapping[str, Ratios] = field(default_factory=dict)  # baseline -> ratios
    totals: tuple[Mapping[str, float], ...] = ()  # by pair: tokens and seconds, summed


@dataclass(frozen=True)
class TaskReport:
    """One task, all methods."""

    task: str
    prompts: int
    prompt_tokens: float  # median
    new_tokens: int  # of all prompts, once
    cut: int  # prompts whose document lost its end
    left_out: int
    looped: int  # texts that were cut where they began to loop
    best_lookup: str | None
    rows: tuple[MethodRow, ...]


@dataclass(frozen=True)
class Summary:
    """One method of ours over all tasks, by decode speed; a task's ratio is its pairs' mean."""

    method: str
    baseline: str
    worst_task: str
    worst: float
    geometric_mean: float


@dataclass(frozen=True)
class Report:
    """All tasks; `reference` is whose greedy text all others are compared with."""

    reference: str
    pairs: int
    tasks: tuple[TaskReport, ...]
    summaries: tuple[Summary, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether all texts of ours are the reference's."""
        rows = [(t, r) for t in self.tasks for r in t.rows if r.method.startswith("mmspec")]
        return all(row.refused is not None or row.identical == task.prompts for task, row in rows)


_PARTS: Mapping[str, Callable[[Run], float]] = {
    "tokens": lambda run: len(run.tokens),
    "decoded_tokens": lambda run: run.num_decoded,
    "decode_wall_s": lambda run: run.decode.wall_s,
    "decode_cpu_s": lambda run: run.decode.cpu_s,
    "end_to_end_wall_s": lambda run: run.end.wall_s,
    "end_to_end_cpu_s": lambda run: run.end.cpu_s,
    "verifications": lambda run: run.verifications,
    "accepted": lambda run: run.accepted,
}


def build_report(
    measured: Sequence[Measurements], methods: Sequence[Method], *, pairs: int
) -> Report:
    """Everything that is shown or written; `methods` in the order of the rows."""
    names = [method.name for method in methods]
    reference = TRANSFORMERS if TRANSFORMERS in names else PLAIN
    lookups = [method.name for method in methods if method.is_lookup]
    tasks = tuple(_task_report(one, names, lookups, reference) for one in measured)
    ours = [method.name for method in methods if method.library == "mmspec"]
    baselines = (TRANSFORMERS, BEST_LOOKUP, PLAIN)
    summaries = [
        summary
        for name in ours
        for baseline in baselines
        if name != baseline and (summary := _summary(tasks, name, baseline))
    ]
    return Report(reference, pairs, tasks, tuple(summaries))


def _summary(tasks: Sequence[TaskReport], method: str, baseline: str) -> Summary | None:
    means = {}
    for task in tasks:
        (row,) = (row for row in task.rows if row.method == method)
        ratios = row.versus.get(baseline)
        if ratios is not None and ratios.decode is not None:
            means[task.task] = ratios.decode.mean
    if not means:
        return None
    worst = min(means, key=lambda task: means[task])
    overall = statistics.geometric_mean(means.values())
    return Summary(method, baseline, worst, means[worst], overall)


def _task_report(
    measured: Measurements, names: Sequence[str], lookups: Sequence[str], reference: str
) -> TaskReport:
    totals = {name: [_total(runs) for runs in pairs] for name, pairs in measured.runs.items()}
    speeds = {
        name: _speeds(pairs, "decoded_tokens", "decode_wall_s") for name, pairs in totals.items()
    }
    ran = [name for name in lookups if name in totals]
    best = max(ran, key=lambda name: _median(speeds[name]), default=None)
    baselines = {TRANSFORMERS: TRANSFORMERS, PLAIN: PLAIN, BEST_LOOKUP: best}
    expected = _expected(measured, reference)
    rows = []
    for name in names:
        if name not in totals:
            rows.append(MethodRow(name, refused=measured.refused.get(name, "was not run")))
            continue
        own = totals[name]
        differences = _differences(measured.runs[name], expected)
        accepted, verifications = (
            sum(pair[part] for pair in own) for part in ("accepted", "verifications")
        )
        rows.append(
            MethodRow(
                name,
                tokens_per_second=_median(speeds[name]),
                end_to_end_tokens_per_second=_median(_speeds(own, "tokens", "end_to_end_wall_s")),
                acceptance_length=1 + accepted / verifications if verifications else 1.0,
                identical=len(expected) - len(differences),
                differences=differences,
                versus={
                    label: _ratios(own, totals[baseline])
                    for label, baseline in baselines.items()
                    if baseline in totals
                },
                totals=tuple(own),
            )
        )
    cases = measured.cases
    return TaskReport(
        task=measured.task,
        prompts=len(cases),
        prompt_tokens=statistics.median(case.prompt.num_tokens for case in cases),
        new_tokens=sum(len(case.tokens) for case in cases),
        cut=sum(case.is_cut for case in cases),
        left_out=measured.left_out,
        looped=sum(len(case.tokens) < case.num_before_cut for case in cases),
        best_lookup=best,
        rows=tuple(rows),
    )


def _total(runs: Iterable[Run]) -> dict[str, float]:
    """The sums of one pair's runs over the task's prompts."""
    runs = list(runs)
    return {part: sum(of(run) for run in runs) for part, of in _PARTS.items()}


def _speeds(totals: Sequence[Mapping[str, float]], tokens: str, seconds: str) -> list[float]:
    return [pair[tokens] / pair[seconds] for pair in totals if pair[tokens] and pair[seconds]]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _ratios(own: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]) -> Ratios:
    def of(tokens: str, seconds: str) -> Spread | None:
        ratios = []
        for mine, theirs in zip(own, baseline, strict=True):
            if not (mine[tokens] and mine[seconds] and theirs[tokens] and theirs[seconds]):
                return None
            ratios.append((mine[tokens] / mine[seconds]) / (theirs[tokens] / theirs[seconds]))
        return spread(ratios)

    return Ratios(
        decode=of("decoded_tokens", "decode_wall_s"),
        decode_cpu=of("decoded_tokens", "decode_cpu_s"),
        end_to_end=of("tokens", "end_to_end_wall_s"),
        end_to_end_cpu=of("tokens", "end_to_end_cpu_s"),
    )


def _expected(measured: Measurements, reference: str) -> list[tuple[int, ...]]:
    """The reference's text of each case; our plain text where the reference was refused."""
    if reference in measured.runs:
        return [run.tokens for run in measured.runs[reference][0]]
    return [case.tokens for case in measured.cases]


def _differences(
    pairs: Sequence[Sequence[Run]], expected: Sequence[tuple[int, ...]]
) -> tuple[Difference, ...]:
    found: dict[int, Difference] = {}
    for runs in pairs:
        for case, (run, tokens) in enumerate(zip(runs, expected, strict=True)):
            if run.tokens != tokens and case not in found:
                found[case] = _difference(case, tokens, run.tokens)
    return tuple(found[case] for case in sorted(found))


def _difference(case: int, expected: Sequence[int], got: Sequence[int]) -> Difference:
    at = num_shared(expected, got)
    return Difference(
        case,
        at,
        expected[at] if at < len(expected) else None,
        got[at] if at < len(got) else None,
    )
