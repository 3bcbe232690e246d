import importlib.util
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

import mmspec
from mmspec.cli.picture import picture
from mmspec.cli.render import Comparison, speed_bars
from mmspec.cli.showcase import Outcome
from mmspec.training.tiny.build import build_model, build_processor

SCRIPT = Path(__file__).parent.parent / "scripts" / "demo.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.RUNS = 1  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    """Of a random model: what it says is wrong, and the same with drafts and without."""
    return mmspec.load(build_model("nano").eval(), build_processor())


def test_every_seed_brings_other_tasks_and_the_same_one_the_same(script: ModuleType) -> None:
    first, again, other = ([task.sample.answer for task in script.tasks(n)] for n in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_demo_tells_speed_sameness_and_rightness_in_100_columns(
    script: ModuleType, engine: mmspec.Engine, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_tasks = script.tasks(1)[1:]  # the longest one left out, to be quick
    monkeypatch.setattr(script, "tasks", lambda seed: shown_tasks)
    monkeypatch.setattr(script, "FRAME_S", 0)
    console = Console(
        file=StringIO(),
        width=100,
        height=50,
        force_terminal=is_terminal,
        color_system="truecolor" if is_terminal else None,
    )
    assert script.demo(engine, 1, console) == 0
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert shown.count("✓ identical texts") == len(shown_tasks)
    assert "the model's own character error" in shown
    assert ("▀" in shown) == is_terminal
    if not is_terminal:
        assert max(map(cell_len, shown.splitlines())) <= 100


def test_a_text_that_differs_is_told_and_fails_the_demo(
    script: ModuleType, engine: mmspec.Engine
) -> None:
    task = script.tasks(1)[1]
    right = engine.generate("hello", max_new_tokens=8, temperature=0)
    wrong = replace(right, tokens=(*right.tokens[:5], 3, *right.tokens[6:]))
    same, differing = Comparison(right, right), Comparison(right, wrong)
    assert Outcome(task, right, [same, same]).comparison.is_identical
    assert not Outcome(task, right, [same, differing]).comparison.is_identical
    assert not Outcome(task, wrong, [same, same]).comparison.is_identical


def test_character_error_is_the_edit_distance_over_the_answers_length(
    script: ModuleType, engine: mmspec.Engine
) -> None:
    task = script.tasks(1)[2]
    result = engine.generate("hello", max_new_tokens=4, temperature=0)
    right = replace(result, text=task.sample.answer)
    wrong = replace(result, text=task.sample.answer[:-2])
    outcomes = [Outcome(task, answer, [Comparison(right, right)]) for answer in (right, wrong)]
    assert outcomes[0].character_error == 0
    assert outcomes[1].character_error == pytest.approx(2 / len(task.sample.answer))


def test_a_half_block_shows_two_pixels_one_above_the_other() -> None:
    image = Image.new("RGB", (2, 2), "red")
    image.putpixel((0, 1), (0, 0, 255))  # lower left
    text = picture(image, columns=2, rows=1)
    assert text.plain.strip("\n") == "▀▀"
    styles = [str(span.style) for span in text.spans]
    assert styles == ["#ff0000 on #0000ff", "#ff0000 on #ff0000"]


def test_bars_are_as_long_as_their_speeds() -> None:
    lines = speed_bars({"fast": 200.0, "slow": 50.0, "none": 0.0}, columns=16).plain.splitlines()
    assert [line.count("█") for line in lines] == [16, 4, 0]
    assert len({line.index("tokens/s") for line in lines}) == 1
