"""Figures worked out by hand."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from mmspec.bench.machine import Machine, refuse_if_busy
from mmspec.bench.methods import standard_methods
from mmspec.bench.report import BEST_LOOKUP, Difference, build_report
from mmspec.bench.run import Case, Measurements
from mmspec.bench.timeline import Moment, Run
from mmspec.cli.bench_table import closing_lines, heading, task_table
from mmspec.errors import ConfigError
from mmspec.state import Prompt
from mmspec.training.tiny.build import NUM_SPECIALS, build_tokenizer

TEXT = tuple(NUM_SPECIALS + byte for byte in b"quick fox")
MACHINE = Machine("A CPU", 2, None, 1, 0.1, "3.11", "2.13", "5.23", "abc")


def run(seconds: float, *, verifications: int = 9, tokens: tuple[int, ...] = TEXT) -> Run:
    """The first token after 1 s, the others within `seconds`, half of it CPU time."""
    return Run(
        tokens,
        num_first=1,
        first=Moment(1.0, 0.5),
        last=Moment(1.0 + seconds, 0.5 + seconds / 2),
        end=Moment(1.0 + seconds, 0.5 + seconds / 2),
        verifications=verifications,
        accepted=len(tokens) - verifications,
    )


def measurements(prompts: int = 2) -> Measurements:
    case = Case(Prompt(torch.arange(30)), False, TEXT, len(TEXT) + 5)
    own: dict[str, list[list[Run]]] = {
        "transformers": [[run(4.0)] * prompts, [run(8.0)] * prompts],
        "transformers lookup 5": [[run(4.0)] * prompts] * 2,
        "transformers lookup 10": [[run(2.0, verifications=5)] * prompts] * 2,
        "mmspec plain": [[run(4.0)] * prompts, [run(4.0)] * prompts],
        "mmspec prompt_lookup": [[run(1.0, verifications=3)] * prompts] * 2,
    }
    refused = {"transformers lookup 20": "ValueError: not here"}
    return Measurements("quoting", 64, [case] * prompts, runs=own, refused=refused)


METHODS = standard_methods(("prompt_lookup",))


def test_ratios_are_of_total_tokens_over_total_time_pair_by_pair() -> None:
    (task,) = build_report([measurements()], METHODS, pairs=2).tasks
    rows = {row.method: row for row in task.rows}
    ours = rows["mmspec prompt_lookup"]
    assert ours.tokens_per_second == 8.0  # 2 x 8 tokens in 2 x 1 s
    decode = ours.versus["transformers"].decode
    assert decode is not None
    assert decode.values == (4.0, 8.0)
    assert (decode.median, decode.low, decode.high, decode.coverage) == (6.0, 4.0, 8.0, 0.5)
    whole = ours.versus["transformers"].end_to_end
    assert whole is not None and whole.values == (2.5, 4.5)  # (1 + 4) / (1 + 1), (1 + 8) / 2
    cpu = ours.versus["transformers"].decode_cpu
    assert cpu is not None and cpu.values == (4.0, 8.0)
    assert ours.acceptance_length == 1 + 6 / 3
    assert rows["transformers"].acceptance_length == 1.0


def test_prompts_of_unequal_length_weigh_by_their_time() -> None:
    one = measurements()
    short = TEXT[:3]
    one.runs["mmspec plain"] = [[run(4.0), run(1.0, tokens=short)]] * 2
    (task,) = build_report([one], METHODS, pairs=2).tasks
    row = next(row for row in task.rows if row.method == "mmspec plain")
    assert row.tokens_per_second == pytest.approx((8 + 2) / (4 + 1))


def test_the_best_lookup_is_the_fastest_one_of_the_task() -> None:
    (task,) = build_report([measurements()], METHODS, pairs=2).tasks
    assert task.best_lookup == "transformers lookup 10"
    ours = next(row for row in task.rows if row.method == "mmspec prompt_lookup")
    best = ours.versus[BEST_LOOKUP].decode
    assert best is not None and best.median == 2.0


def test_a_text_counts_as_identical_if_it_is_so_in_every_pair() -> None:
    one = measurements()
    other = (*TEXT[:4], TEXT[0], *TEXT[5:])
    one.runs["mmspec prompt_lookup"][1] = [run(1.0), run(1.0, tokens=other)]
    report = build_report([one], METHODS, pairs=2)
    ours = next(r for r in report.tasks[0].rows if r.method == "mmspec prompt_lookup")
    assert ours.identical == 1
    assert ours.differences == (Difference(1, 4, expected=TEXT[4], got=TEXT[0]),)
    assert not report.is_exact
    one.runs["mmspec prompt_lookup"][1] = [run(1.0), run(1.0, tokens=TEXT[:6])]
    ours = build_report([one], METHODS, pairs=2).tasks[0].rows[-1]
    assert ours.differences == (Difference(1, 6, expected=TEXT[6], got=None),)


def test_a_text_of_one_token_has_no_decode_speed() -> None:
    one = measurements(1)
    single = Run(TEXT[:1], 1, Moment(1, 1), Moment(1, 1), Moment(1, 1), 1, 0)
    one.runs = {name: [[single]] * 2 for name in one.runs}
    (task,) = build_report([one], METHODS, pairs=2).tasks
    assert all(ratios.decode is None for row in task.rows for ratios in row.versus.values())


def shown(one: Measurements, columns: int, dtype: str = "float32") -> str:
    report = build_report([one], METHODS, pairs=2)
    console = Console(width=columns, record=True, file=open("/dev/null", "w"), color_system=None)
    console.print(heading("tiny-vlm", "float32", MACHINE, pairs=2))
    console.print(task_table(report.tasks[0], width=columns))
    console.print(closing_lines(report, build_tokenizer(), dtype=dtype))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


GOLDEN = """\
tiny-vlm in float32, greedy
A CPU · 1 of 2 cores, load before 0.10 · torch 2.13, transformers 5.23 · 2 interleaved pairs
"""


def test_the_table_has_a_row_a_method_and_names_who_was_refused() -> None:
    text = shown(measurements(), 140)
    assert text.startswith(GOLDEN)
    lines = text.splitlines()
    assert "quoting   2 prompts of 30 tokens · 18 new tokens · 2 texts cut at a loop" in lines
    row = next(line for line in lines if "mmspec prompt_lookup" in line).split()
    #            tokens/s  x transformers     x its lookup       x our plain        cpu  end  a step
    ratios = "6.00 4.00–8.00 2.00 2.00–2.00 4.00 4.00–4.00"
    assert row == f"mmspec prompt_lookup 8.0 {ratios} 6.00 3.50 3.00 2/2".split()
    assert next(x for x in lines if "lookup 10 ★" in x).split()[4] == "4.0"
    assert next(x for x in lines if "lookup 20" in x).split() == [
        "transformers", "lookup", "20", "refused",
    ]  # fmt: skip
    assert "refused: transformers lookup 20 (quoting): ValueError: not here" in lines
    assert "✓ every text of mmspec is that of transformers" in lines
    assert (
        "mmspec prompt_lookup over all tasks: 6.00x transformers (worst 6.00x, quoting), 2.00x "
        "transformers' best lookup (worst 2.00x, quoting), 4.00x mmspec plain (worst 4.00x, "
        "quoting)"
    ) in text.replace("\n", " ")
    assert "Intervals hold the median with 50.0% (2 pairs)." in lines


def test_a_narrow_terminal_loses_intervals_and_no_column() -> None:
    lines = shown(measurements(), 100).splitlines()
    row = next(line for line in lines if "mmspec prompt_lookup" in line)
    assert len(row) <= 100
    assert row.split()[2:] == "8.0 6.00 4.00–8.00 2.00 4.00 6.00 3.50 3.00 2/2".split()


@pytest.mark.parametrize(
    ("columns", "shown_figures"),
    [
        (80, "8.0 6.00 4.00–8.00 2.00 4.00 3.00 2/2"),  # without CPU time and end to end
        (74, "8.0 6.00 2.00 4.00 3.00 2/2"),  # nor an interval
        (60, "8.0 6.00 3.00 2/2"),  # nor other baselines
    ],
)
def test_a_narrower_one_loses_whole_columns(columns: int, shown_figures: str) -> None:
    text = shown(measurements(), columns)
    lines = text.splitlines()
    row = next(line for line in lines if "mmspec prompt_lookup" in line)
    assert row.split()[2:] == shown_figures.split()
    assert "by CPU" not in text and not any("…" in line for line in lines)


def test_a_long_name_costs_no_figure() -> None:
    one = measurements()
    name = "mmspec " + "a name that somebody gave " * 3
    one.runs[name] = one.runs.pop("mmspec prompt_lookup")
    methods = [*METHODS[:-1], replace(METHODS[-1], name=name)]
    report = build_report([one], methods, pairs=2)
    console = Console(width=120, record=True, file=io.StringIO(), color_system=None)
    console.print(task_table(report.tasks[0], width=120))
    text = console.export_text()
    assert "…" not in text and "6.00 4.00–8.00 2.00 2.00–2.00 4.00" in " ".join(text.split())


def test_a_difference_is_shown_with_its_place_and_texts() -> None:
    one = measurements()
    other = (*TEXT[:4], TEXT[0], *TEXT[5:])
    one.runs["mmspec prompt_lookup"][0] = [run(1.0), run(1.0, tokens=other)]
    lines = shown(one, 140).splitlines()
    assert "✗ mmspec prompt_lookup: quoting, prompt 2, token 4: 'q', transformers 'k'" in lines
    assert not any(line.startswith("✓") for line in lines)
    assert not any("near-ties" in line for line in lines)
    assert "mmspec check tells" in shown(one, 140, "bfloat16")


def test_the_worst_task_and_the_mean_of_all_are_of_the_pairs_means() -> None:
    slow = replace(measurements(), task="open-ended")
    slow.runs["mmspec prompt_lookup"] = [[run(8.0)] * 2, [run(4.0)] * 2]
    summaries = build_report([measurements(), slow], METHODS, pairs=2).summaries
    one = next(s for s in summaries if (s.method, s.baseline) == (METHODS[-1].name, "mmspec plain"))
    assert (one.worst_task, one.worst) == ("open-ended", 0.75)  # the mean of 0.5 and 1
    assert one.geometric_mean == pytest.approx((4.0 * 0.75) ** 0.5)


@pytest.mark.parametrize(
    ("load", "cores", "threads", "is_busy"),
    [(0.4, 2, 1, False), (0.6, 2, 1, True), (3.0, 16, 1, False), (4.0, 16, 1, True),
     (3.0, 16, 16, True), (None, 2, 1, False)],
)  # fmt: skip
def test_a_busy_machine_is_refused(
    load: float | None, cores: int, threads: int, is_busy: bool
) -> None:
    machine = replace(MACHINE, load_before=load, cores=cores, threads=threads)
    if not is_busy:
        refuse_if_busy(machine)
        return
    who = "1 thread" if threads == 1 else f"{threads} threads"
    with pytest.raises(ConfigError, match=rf"load is .* for {who} on {cores} cores: .*--force"):
        refuse_if_busy(machine)
