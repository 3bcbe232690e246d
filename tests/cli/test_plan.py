"""`mmspec plan`: tables, JSON, a picture, and mistakes."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mmspec.cli import app
from mmspec.target.load import BUNDLED

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def plan(*words: object, code: int = 0) -> Result:
    arguments = ["plan", *map(str, words)]
    run = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "220"})
    assert run.exit_code == code, run.output
    return run


def test_tables_show_costs_speeds_and_where_it_pays() -> None:
    text = plan(
        "llama-3-8b", "--context", "32k", "--batch", 1, "--draft-model", "llama-3.2-1b"
    ).stdout
    assert "llama-3-8b on h200" in text and "Computed, not measured" in text
    assert "6.51" in text  # ms of 64 nodes
    assert "1.93/3.05" in text  # int4 draft weights
    assert "draft model llama-3.2-1b" in text and "cascade" in text
    assert "from 16.9k" in text  # bf16 self-drafting


def test_json_holds_all_that_the_tables_show() -> None:
    run = plan("qwen2.5-7b", "--gpu", "a100", "--context", "4096", "--batch", 2, "--json")
    values = json.loads(run.stdout)
    (place,) = values["places"]
    assert (place["batch"], place["context"]) == (2, 4096)
    assert set(place["score_s"]) == {"1", "16", "64", "128"}
    assert {p["method"] for p in place["prospects"]} == set(values["assumed"])
    assert {p["method"] for p in values["pays"]} == set(values["assumed"])


def test_an_assumption_can_be_replaced() -> None:
    words = ("llama-3-8b", "--context", "32k", "--batch", 1, "--json")
    before, after = (
        json.loads(plan(*words, *more).stdout) for more in ((), ("--assume", "EAGLE=3,3"))
    )
    assert after["assumed"]["EAGLE-like head"]["range"] == [3.0, 3.0]
    speeds = [
        next(p for p in v["places"][0]["prospects"] if p["method"].startswith("EAGLE"))
        for v in (before, after)
    ]
    assert speeds[1]["low"]["ratio"] == pytest.approx(speeds[0]["low"]["ratio"] * 3 / 2.5)


def test_eager_mode_makes_self_drafting_a_loss() -> None:
    run = plan("llama-3-8b", "--context", "4k", "--batch", 1, "--host-ms", 20, "--json")
    speeds = json.loads(run.stdout)["places"][0]["prospects"]
    own = {p["method"]: p["low"]["ratio"] for p in speeds if p["method"].startswith("compressed")}
    assert own and all(ratio < 1 for ratio in own.values())


def test_a_bundled_model_has_a_shape() -> None:
    assert "tiny-vlm on 4090" in plan("tiny-vlm", "--gpu", "4090", "--context", "1k").stdout
    assert "nano-vlm, tiny-vlm" in plan("tiny_vlm", code=2).stderr


def test_a_config_is_taken_by_its_own_path() -> None:
    assert "nano-vlm on h200" in plan(BUNDLED / "nano-vlm" / "config.json").stdout


def test_measurements_stand_beside_predictions() -> None:
    words = ("random-llama", "--gpu", "0.02,0.1,0.1", "--weights", "fp32", "--context", "16k")
    assert "Predictions beside" not in plan(*words).stdout
    text = plan(*words, "--measured", RESULTS).stdout
    assert "score_cpu.json" in text and "Predictions beside measurements" in text


@pytest.mark.parametrize(
    "words, told",
    [
        (("llama-9",), "llama-3-8b"),
        (("llama-3-8b", "--gpu", "h300"), "h200"),
        (("llama-3-8b", "--gpu", "nan,1,1"), "three numbers"),
        (("llama-3-8b", "--gpu", "inf,inf,inf"), "three numbers"),
        (("llama-3-8b", "--context", "4kb"), "4096 or 4k"),
        (("llama-3-8b", "--weights", "int3"), "int4"),
        (("llama-3-8b", "--assume", "EAGLE=3,2"), "low before high"),
        (("llama-3-8b", "--assume", "compressed=2"), "acceptance from 0 to 1"),
        (("llama-3-8b", "--assume", "MEDUSA=2"), "no drafter"),
        (("llama-3-8b", "--measured", "nowhere.json"), "nowhere.json"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...], told: str) -> None:
    assert told in plan(*words, code=2).stderr


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra: plot)")
    path = tmp_path / "plan.png"
    plan("llama-3-8b", "--context", "4k", "--batch", 1, "--batch", 16, "--plot", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong in (tmp_path / "no-folder" / "plan.png", tmp_path / "plan.what"):
        run = plan("llama-3-8b", "--context", "4k", "--plot", wrong, code=2)
        assert f"{wrong.name}: cannot be written" in run.stderr.replace("\n", "")


def test_a_picture_without_matplotlib_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = plan("llama-3-8b", "--plot", tmp_path / "plan.png", code=2)
    assert "mmspec[plot]" in run.stderr


@pytest.mark.parametrize("columns", ["60", "80", None])
def test_nothing_is_cut_in_a_narrow_terminal_or_a_file(columns: str | None) -> None:
    """But for a file there is no edge: each row is one line."""
    run = CliRunner().invoke(
        app, ["plan", "llama-3-8b", "--batch", "1"], env={"NO_COLOR": "1", "COLUMNS": columns}
    )
    assert run.exit_code == 0 and "…" not in run.stdout
    assert max(map(len, run.stdout.splitlines())) <= int(columns or 160)
    row = "cascade: lookup, compressed_kv int4  0.9 / 1"
    assert (row in run.stdout) == (columns is None)


def test_a_folder_without_results_is_told_behind_one_with_them(tmp_path: Path) -> None:
    folders = ("--measured", RESULTS, "--measured", tmp_path)
    assert f"{tmp_path}: holds no result" in plan("llama-3-8b", *folders, code=2).stderr
