"""Bars: each says what was found with its interval, and whether it is enough."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from mmspec.bench.interval import spread
from mmspec.gpu_check.attention import Timed
from mmspec.gpu_check.bars import Bar, bars, verdicts
from mmspec.gpu_check.exactness import Rate
from mmspec.gpu_check.kernels import Tally
from mmspec.gpu_check.recorder import SectionResult, plain
from mmspec.gpu_check.report import has_failed, report_lines
from mmspec.gpu_check.tables import suggestions


def around(median: float) -> dict[str, Any]:
    return asdict(spread([median * (0.97 + 0.01 * i) for i in range(7)]))


def section(failures: tuple[str, ...] = (), **found: object) -> dict[str, Any]:
    """As it is read from the file."""
    return plain(SectionResult("", "passed", failures=list(failures), found=found))


def timed(shape: str, pairs: int, *, triton: float, flash: float) -> Timed:
    us = {"triton": triton, "flash_attn_3": flash}
    return Timed(shape, pairs, us, "triton", min(us, key=lambda name: us[name]), ())


def ratios(plain_ms: float, **speeds: float) -> dict[str, object]:
    rows: dict[str, object] = {"mmspec plain": {"spread": around(1.0), "ms_a_token": plain_ms}}
    return rows | {f"mmspec {name}": {"spread": around(speed)} for name, speed in speeds.items()}


def a_run() -> dict[str, Any]:
    """One in which everything holds."""
    return {
        "kernels": section(attention={"triton": Tally(passed=90, declined=["f64"])}),
        "attention": section(
            table=[timed("4k", 4, triton=10, flash=12), timed("4k wide", 512, triton=40, flash=30)]
        ),
        "plain": section(
            roofline_share=around(0.8), **{"speed beside eager, dynamic cache": around(5.0)}
        ),
        "timings": section(
            **{
                f"llama-3-8b at {context}": {
                    "graph": {
                        "ratio_of_64": around(1.1),
                        "score_ms": {1: 4.0, 64: 4.4},
                        "roofline_share": 0.8,
                    },
                    "expected_ms": {1: 3.9, 64: 4.1},
                }
                for context in (4096, 32_768)
            }
        ),
        "exactness": section(
            prompt_lookup=[{}],
            parted_per_token={
                name: {
                    "speculative": Rate(2, 1000),
                    "plain, 3 rows": Rate(1, 900),
                    "chance": 0.3,
                }
                for name in ("greedy", "T=1")
            },
            **{"prompt_lookup, bitwise": [{"texts": 6, "identical": 6}]},
        ),
        "speed": section(
            enlarged={"error": 0.0},
            **{
                "quoting, 1k": ratios(4.5, prompt_lookup=3.6, retrieval=2.0),
                "open-ended": ratios(4.5, prompt_lookup=0.99, retrieval=1.0),
            },
        ),
    }


def of(sections: Mapping[str, Any], start: str) -> list[Bar]:
    return [bar for bar in bars(sections) if start in bar.what]


def test_where_nothing_was_measured_every_bar_says_so() -> None:
    assert {bar.verdict for bar in bars({})} == {"not measured"}
    assert {bar.number for bar in bars({})} == {1, 2, 3, 4, 5}
    assert {bar.verdict for bar in bars({"plain": section()})} == {"not measured"}


def test_where_all_holds_every_bar_is_met_and_written_with_its_interval() -> None:
    found = list(bars(a_run()))
    assert [bar for bar in found if bar.verdict != "met"] == []
    assert not has_failed(a_run(), is_small=False)
    (roofline,) = of(a_run(), "roofline")
    assert roofline.value == pytest.approx(0.8) and roofline.shown == "0.8 (0.776 to 0.824)"
    assert json.loads(json.dumps(list(verdicts(a_run()))))[0]["verdict"] == "met"
    text = "\n".join(report_lines(a_run(), is_small=False))
    assert "| 2. plain decoding, 8B at 4k: share of the roofline | >= 0.7 | 0.8 (0.776" in text
    assert "| 4k wide | 40.0 | 30.0 | flash_attn_3 | triton |" in text
    assert "| llama-3-8b at 4096 | 4.00 (3.90) | 4.40 (4.10) | 0.80 |" in text


def test_the_end_of_what_is_printed_has_all_that_did_not_hold() -> None:
    """Of a long output the last 12,000 characters may be all that one sees."""
    run = a_run()
    names = ("triton", "flash_attn_3", "flash_attn_4", "torch_flash", "sdpa", "matmul")
    run["attention"]["found"]["table"] = [
        asdict(
            Timed(f"1 x 131072 tokens, {n} nodes", n, dict.fromkeys(names, 1234.5), *names[:2], ())
        )
        for n in range(1, 61)
    ]
    for name, found in run.items():
        found["failures"] = [f"{name}, number {number}: {'x' * 300}" for number in range(20)]
    text = "\n".join(report_lines(run, is_small=False))
    assert len(text) > 12_000 and "number 0" in text[-12_000:] and "### Sections" in text[-12_000:]


@pytest.mark.parametrize(
    ("name", "found", "what"),
    [
        ("kernels", section(("attention by triton: plain: off by 1",),
                            attention={"triton": Tally()}), "conformance"),
        ("kernels", section(("flash_attn_3: crashed: its process ended with signal 11",),
                            attention={"triton": Tally()}), "conformance"),
        ("attention", section(table=[timed("4k", 64, triton=12, flash=10)]), "up to 64 pairs"),
        ("attention", section(table=[timed("4k", 65, triton=15, flash=10)]), "above 64 pairs"),
        ("plain", section(roofline_share=around(0.69)), "share of the roofline"),
        ("plain", section(**{"speed beside eager, dynamic cache": around(2.9)}), "generate"),
        ("timings", section(**{"llama-3-8b at 32768": {"graph": {"ratio_of_64": around(1.7)}}}),
         "8B at 32768"),
        ("exactness", section(("x, greedy, prompt 1, token 2: beyond rounding",), x=[{}]),
         "beyond rounding"),
        ("exactness", section(**{"x, bitwise": [{"texts": 6, "identical": 5}]}), "bitwise"),
        ("speed", section(**{"quoting, 1k": ratios(4, prompt_lookup=2.9)}), "copying"),
        ("speed", section(**{"open-ended": ratios(4, prompt_lookup=0.96)}), "the worst"),
    ],
)  # fmt: skip
def test_what_is_not_enough_is_missed(name: str, found: dict[str, Any], what: str) -> None:
    assert {bar.verdict for bar in of({name: found}, what)} == {"missed"}
    assert has_failed({name: found}, is_small=False)
    assert not has_failed({name: found}, is_small=True)  # which measures nothing


def test_a_higher_rate_is_a_bar_of_its_own() -> None:
    rates = {"speculative": Rate(20, 900), "plain, 3 rows": Rate(1, 900), "chance": 0.001}
    found = {"exactness": section(x=[{}], parted_per_token={"greedy": rates})}
    assert [bar.verdict for bar in of(found, "beyond rounding")] == ["met"]
    assert [bar.verdict for bar in of(found, "bf16, greedy")] == ["missed"]
    assert [bar.verdict for bar in of(found, "bf16, T=1")] == ["not measured"]


def test_what_is_suggested_is_the_quickest_of_a_class_unless_our_own_is_near() -> None:
    assert "('triton', 'flash_attn_3')" in next(suggestions(a_run()))
    near = section(table=[timed("wide", 512, triton=31, flash=30)])
    far = section(table=[timed("wide", 512, triton=50, flash=30)])
    assert "None, ('triton', 'flash_attn_3')" in next(suggestions({"attention": near}))
    assert "None, ('flash_attn_3', 'triton')" in next(suggestions({"attention": far}))
