"""Where a drafter pays, and predictions beside measurements."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mmspec.errors import ConfigError
from mmspec.plan import HARDWARE, SHAPES, Forward, outlook, standard_methods
from mmspec.plan.measured import compare, is_score_report, slower
from mmspec.plan.method import Assumed, Gain
from mmspec.plan.methods import expected_tokens
from mmspec.plan.roofline import Forward as AForward
from mmspec.plan.roofline import Precision

TARGET = Forward(SHAPES["llama-3-8b"], HARDWARE["h200"])


@dataclass(frozen=True)
class Between:
    """A drafter that pays in some contexts alone."""

    first: int
    last: int
    name: str = "between"
    range: tuple[float, float] = (0.5, 0.6)
    assumed: Assumed = "acceptance"

    def gain(self, target: AForward, value: float, *, context: int, batch: int) -> Gain:
        return Gain(2.0 if self.first <= context <= self.last else 0.5, 1, 2)


@pytest.mark.parametrize(
    "first, last, found, text",
    [
        (3000, 70_000, ((3000, 70_000),), "2.93k to 68.4k"),
        (0, 10_000, ((256, 10_000),), "up to 9.77k"),
        (12_288, 2**30, ((12_288, 2**20),), "from 12k"),
        (0, 2**30, ((256, 2**20),), "everywhere"),
        (2**29, 2**30, (), "never"),
    ],
)
def test_break_even_is_found_to_the_token(
    first: int, last: int, found: tuple[tuple[int, int], ...], text: str
) -> None:
    (pays,) = outlook(TARGET, [Between(first, last)], contexts=[4096], batches=[1]).pays
    assert pays.contexts == found
    assert pays.text == text


def test_where_it_pays_is_where_the_speeds_say_so() -> None:
    methods = standard_methods(TARGET)
    found = outlook(TARGET, methods, contexts=[4096, 131_072], batches=[1, 16])
    stretches = {(one.method, one.batch): one.contexts for one in found.pays}
    for place in found.places:
        for prospect in place.prospects:
            inside = any(
                first <= place.context <= last
                for first, last in stretches[prospect.method, place.batch]
            )
            assert inside == (prospect.low.ratio >= 1.0), (place.context, prospect)


def test_what_has_no_room_is_said() -> None:
    found = outlook(TARGET, [], contexts=[32_768, 131_072], batches=[1, 16])
    assert [place.fits for place in found.places] == [True, True, True, False]


def test_rows_keep_as_much_each() -> None:
    one, many = outlook(TARGET, [], contexts=[32_768], batches=[1, 16]).places
    assert many.kv_bytes == 16 * one.kv_bytes > 0


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
def test_a_step_drafts_fewer_tokens_than_it_scores(weights: Precision) -> None:
    """And on a CPU, which computes in fp32, few of either, by weights of its own."""
    target = replace(TARGET, weights=weights)
    methods = standard_methods(target, draft=SHAPES["llama-3.2-1b"])
    for method in methods:
        gain = method.gain(target, method.range[0], context=4096, batch=1)
        assert 1 <= gain.depth < gain.nodes <= (17 if weights == "fp32" else 128), method.name
    trees = {m.name: m.nodes for m in methods if hasattr(m, "nodes")}
    assert (max(trees.values()) <= 8) == (weights == "fp32"), trees
    own = [m.name.split()[-1] for m in methods if m.name.startswith("compressed_kv")]
    assert own == (["fp32", "int8", "int4"] if weights == "fp32" else ["bf16", "fp8", "int4"])


def test_the_more_layers_are_left_out_the_quicker() -> None:
    def ratio(skip: float) -> float:
        methods = standard_methods(TARGET, skip=skip)
        (method,) = (one for one in methods if one.name.startswith("layer_skip"))
        return method.gain(TARGET, 0.8, context=4096, batch=1).ratio

    assert ratio(0.2) < ratio(0.45)


def test_expected_tokens_is_the_sum_of_the_paths() -> None:
    for acceptance in (0.0, 0.3, 0.9, 1.0):
        assert expected_tokens(acceptance, 5) == pytest.approx(
            sum(acceptance**depth for depth in range(6))
        )


def test_predictions_stand_beside_their_measurements(tmp_path: Path) -> None:
    samples = {"mmspec": {"1": [30.0, 20.0, 25.0], "8": [50.0, 40.0, 45.0]}, "model": {"1": [99.0]}}
    path = tmp_path / "score.json"
    path.write_text(
        json.dumps(
            {"model": "random llama, 8 x 512", "rows": [{"context": 16_384, "samples_ms": samples}]}
        )
    )
    hardware = HARDWARE["h200"]
    found = compare(path, hardware, precision="fp32")
    assert [(one.context, one.nodes, one.measured_s) for one in found] == [
        (16_384, 1, 0.025),
        (16_384, 8, 0.045),
    ]
    forward = Forward(SHAPES["random-llama"], hardware, "fp32", "fp32")
    assert found[1].predicted_s == forward.seconds(8, context=16_384, batch=1)
    assert slower(found) == pytest.approx((found[0].ratio + found[1].ratio) / 2)


def test_the_results_of_this_repository_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    reports = [path for path in folder.glob("*.json") if is_score_report(path)]
    assert [path.name for path in reports] == ["score_cpu.json"]
    assert compare(reports[0], HARDWARE["4090"], precision="fp32")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"model": "x", "rows": [1]}',
        '{"rows": {}}',
        '{"rows": [{"a": 1}]}',
        '{"rows": []}',
    ],
)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert not is_score_report(path)
    with pytest.raises(ConfigError, match=r"other\.json"):
        compare(path, HARDWARE["h200"], precision="fp32")
