import json
from pathlib import Path

import pytest
from test_mutants import (
    Patch,
    commit_keeps_one_too_many,
    noise_is_the_steps,
    siblings_see_each_other,
)
from typer.testing import CliRunner, Result

from mmspec.cli import app

QUICK = ("--max-new-tokens", 12, "--seeds", 1)
TEXTS = ("--prompt", "abc abc abd abc ab", "--prompt", "What is this? What is")


def check(*words: object, text: str | None = None, columns: int = 120) -> Result:
    arguments = ["check", *map(str, words)]
    shown = {"NO_COLOR": "1", "COLUMNS": str(columns)}
    return CliRunner().invoke(app, arguments, input=text, env=shown)


def test_a_right_engine_passes_with_prompts_and_pictures_of_its_own(vlm: Path) -> None:
    run = check(vlm, "--max-new-tokens", 6, "--seeds", 1, "--json")
    assert run.exit_code == 0, run.stderr
    values = json.loads(run.stdout)
    assert values["verdict"] == "identical"
    ways = {one["way"]: one for one in values["comparisons"] if one["sampling"] == "greedy"}
    assert list(ways) == [
        "prompt_lookup, alone",
        "prompt_lookup, batched",
        "stress, alone",
        "stress, batched",
        "transformers' generate",
    ]
    assert {one["identical"] for one in ways.values()} == {6}  # four texts, two pictures
    assert ways["stress, batched"]["accepted"] > 6


def test_the_report_says_what_was_the_same(vlm: Path) -> None:
    run = check(vlm, *QUICK, *TEXTS)
    assert run.exit_code == 0, run.stderr
    for told in ("2 prompts · greedy and 1 seed ", "stress, alone", "2/2", "100%", "✓ identical"):
        assert told in run.stdout


@pytest.mark.parametrize("columns", [40, 60])
def test_nothing_is_cut_in_a_narrow_terminal(vlm: Path, columns: int) -> None:
    run = check(vlm, *QUICK, *TEXTS[:2], columns=columns)
    assert run.exit_code == 0 and "…" not in run.stdout and "100%" in run.stdout


@pytest.mark.parametrize("fault", [siblings_see_each_other, noise_is_the_steps])
def test_a_planted_error_is_found_and_called_a_bug(
    fault: Patch, vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    run = check(vlm, *QUICK, *TEXTS, "--dtype", "float32", "--set", "decode.probe=false", "--json")
    assert run.exit_code == 2, run.stdout + run.stderr
    values = json.loads(run.stdout)
    assert values["verdict"] == "bug"
    found = [d for one in values["comparisons"] for d in one["differences"].values()]
    assert any(d["error"] is None or d["error"] > d["bound"] for d in found)


def test_low_precision_does_not_excuse_a_planted_error(
    vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_keeps_one_too_many(monkeypatch)
    run = check(vlm, *QUICK[:3], 0, *TEXTS, "--dtype", "bfloat16", "--set", "decode.probe=false")
    assert run.exit_code == 2, run.stdout + run.stderr


def test_a_bug_is_shown_with_its_place_and_its_figures(
    vlm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_keeps_one_too_many(monkeypatch)
    run = check(vlm, *QUICK[:3], 0, *TEXTS, "--dtype", "float32", "--set", "decode.probe=false")
    assert run.exit_code == 2
    for told in ("✗ stress, ", "token ", "plain ", "here ", "logit error here", "This is a bug."):
        assert told in run.stdout
    assert "near-tie: " not in run.stdout


def test_prompts_come_from_a_file(vlm: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "abc abc abc"}\n\n{"turns": ["What?", "More?"]}\n')
    run = check(vlm, *QUICK[:3], 0, "--prompts", file, "--json")
    assert run.exit_code == 0, run.stderr
    assert {one["texts"] for one in json.loads(run.stdout)["comparisons"]} == {2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("/no/such/model",), "/no/such/model"),
        (("MODEL", "--image", "red.png"), "--image without --prompt"),
        (("MODEL", "--prompts", "/no/such.jsonl"), "cannot be read"),
        (("MODEL", "--drafter", "nobody"), "expected none, or one or several"),
        (("MODEL", "--prompt", "hello", "--max-new-tokens", 999_999), "shorten the prompt"),
        (("MODEL", "--nonsense"), "No such option"),
    ],
)
def test_a_mistake_is_no_verdict(vlm: Path, words: tuple[object, ...], told: str) -> None:
    run = check(*(vlm if word == "MODEL" else word for word in words))
    assert run.exit_code == 3
    assert told in run.stderr
    assert run.stdout == ""
