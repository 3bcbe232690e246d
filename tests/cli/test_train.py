"""`mmspec train`, and the heads that come of it in decoding."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner, Result

import mmspec
from mmspec.cli import app
from mmspec.cli.loading import Loading
from mmspec.cli.train import Shown
from mmspec.training.heads import Acceptance, Report

WORDS = "market harbour mill station bakery library".split()
OPTIONS = ("--set", "train.max_new_tokens=16", "--set", "train.batch_tokens=256")
LEARNING = ("--set", "train.held_out=0.1", "--set", "train.rate=0.004")
HEADS = {
    "medusa": ("train.medusa.num_heads=2",),
    "eagle2": ("train.eagle.depth=2",),
    "eagle3": ("train.eagle3.steps=3",),
    "glide": ("train.glide.max_drafts=3",),
}


def train(*words: object, code: int = 0) -> Result:
    run = CliRunner().invoke(app, ["train", *map(str, words)], env={"NO_COLOR": "1"})
    assert run.exit_code == code, run.output
    return run


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the target's own answers."""
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    asked = [f"Repeat: {word} {word}" for word in WORDS]
    engine = mmspec.load("nano-vlm", drafter="none")
    lines = [
        {"id": prompt, "prompt": prompt, "answer": result.text}
        for prompt, result in zip(asked, engine.generate(asked, max_new_tokens=20), strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tokens_a_step(override: str, drafter: str, prompt: str) -> float:
    settings = [override, "decode.controller=fixed", "decode.probe=false"]
    engine = mmspec.load("nano-vlm", drafter=drafter, overrides=settings)
    result = engine.generate(prompt, max_new_tokens=20)
    assert result.tokens == engine.generate(prompt, max_new_tokens=20, speculate=False).tokens
    return result.stats.tokens_per_step


@pytest.mark.parametrize(
    ("head", "steps", "floor"),
    [("medusa", 40, 1.25), ("eagle2", 30, 1.5), ("eagle3", 30, 1.5), ("glide", 30, 1.5)],
)
def test_a_trained_head_drafts_more_than_an_untrained_one(
    head: str, steps: int, floor: float, prompts: Path, tmp_path: Path
) -> None:
    """Of prompts that it was trained on: what is tested is that what is learned arrives."""
    reached = {}
    for out, count in (("untrained", 1), ("trained", steps)):
        run = train(
            *("nano-vlm", prompts, "--head", head, "--out", tmp_path / out, "--steps", count),
            *OPTIONS,
            *LEARNING,
            *(word for setting in HEADS[head] for word in ("--set", setting)),
        )
        assert "tokens a step in a chain of drafts" in run.stdout
        words = run.stdout.strip().splitlines()[-1].split()
        drafter, override = words[words.index("--drafter") + 1], words[words.index("--set") + 1]
        assert override == f"drafter.{drafter}.path={tmp_path / out}"
        reached[out] = tokens_a_step(override, drafter, "Repeat: market market")
    assert reached["trained"] > max(floor, reached["untrained"])


def test_a_killed_run_goes_on(prompts: Path, tmp_path: Path) -> None:
    words = ["train", "nano-vlm", prompts, "--head", "medusa", "--out", tmp_path / "out"]
    words += ["--steps", "4000", *OPTIONS, "--set", "train.checkpoint_every_s=0.1"]
    code = "import torch; torch.set_num_threads(1); from mmspec.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        checkpoint = tmp_path / "out" / "training" / "checkpoint.pt"
        until = time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    again = train(*words[1:5], "--out", tmp_path / "out", "--steps", 3, *OPTIONS, code=2)
    assert "--resume" in again.stderr
    done = json.loads((tmp_path / "out" / "training" / "log.jsonl").read_text().splitlines()[0])
    assert done["step"] == 0
    run = train(*words[1:5], "--out", tmp_path / "out", "--steps", 3, *OPTIONS, "--resume")
    assert "drafter.medusa.path" in run.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--head", "medsa"], "expected one of medusa, eagle"),
        (["--head", "medusa", "--steps", "0"], "train.steps=0"),
        (["--head", "medusa", "--set", "train.rats=1"], "Did you mean train.rate"),
        (["--head", "medusa", "--set", "train.decay=fast", "--steps", "1"], "decay='fast'"),
        (["--head", "medusa", "--set", "train.answers=mine", "--steps", "1"], "auto, own, given"),
        (["--head", "eagle3", "--set", "train.eagle3.steps=0", "--steps", "1"], "train.eagle3"),
        (["--head", "medusa", "--set", "train.learn=every", "--steps", "1"], "answers, all"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing_behind(
    words: list[str], told: str, prompts: Path, tmp_path: Path
) -> None:
    run = train("nano-vlm", prompts, "--out", tmp_path / "out", *words, *OPTIONS, code=2)
    assert told in run.stderr
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_mistake_is_told_before_the_model_is_loaded(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may take minutes."""

    def load(self: Loading) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Loading, "load", load)
    options = ("--head", "medusa", "--steps", 1, "--out")
    run = train("nano-vlm", tmp_path / "none.jsonl", *options, tmp_path / "out", code=2)
    assert "no such file" in run.stderr and not (tmp_path / "out").exists()
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "training" / "checkpoint.pt").touch()
    run = train("nano-vlm", prompts, *options, tmp_path / "out", code=2)
    assert "holds a training already" in run.stderr


def test_the_bar_has_room_beside_the_losses() -> None:
    """EAGLE-3 has one a draft: seven, by default."""
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    losses = {"loss": 44.293, **{f"draft {n}": 11.5 for n in range(1, 8)}}
    acceptance = Acceptance(100, (0.5,) * 7, (0.6,) * 7, 5, 1.66)
    shown = Shown(console)
    with shown:
        for found in (None, acceptance):
            shown.on_report(Report(12, 0.25, 60.0, 4096, 340.0, 0, 1e-4, losses, found))
    told = " ".join(Text.from_ansi(console.file.getvalue()).plain.split())
    assert "25%" in told, told
    assert "loss 44.293 · said by depth 50%" in told and "1.66 tokens a step" in told


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = ("--head", "medusa", "--out", tmp_path / "out", "--steps", 1)
    run = train("nano-vlm", tmp_path / "none.jsonl", *options, code=2)
    assert "no such file" in run.stderr
    (tmp_path / "one.jsonl").write_text('{"prompt": "Hi", "answer": "Ho"}\n{"x": 1}\n')
    run = train("nano-vlm", tmp_path / "one.jsonl", *options, code=2)
    assert "1 text to learn from" in run.stderr and "line 2" in run.stderr


def test_pictures_and_documents_are_learned_from(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((32, 32), 60 + number).save(folder / f"{number}.png")
    (folder / "a.txt").write_text("A short text about a mill.")
    options = ("--head", "glide", "--out", tmp_path / "out", "--steps", 2, *OPTIONS)
    run = train(
        "nano-vlm", folder, *options, "--prompt", "What is it?", "--set", "train.held_out=0"
    )
    assert "4 texts" in run.stderr and "2 steps" in run.stdout


def test_the_log_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra: train)")
    from mmspec.cli.train_report import write_plot

    (tmp_path / "training").mkdir()
    line = {"step": 1, "losses": {"loss": 2.0}, "acceptance": {"top_1": [0.5, 0.2]}}
    (tmp_path / "training" / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert "training.png" in (write_plot(tmp_path) or "")
    assert (tmp_path / "training" / "training.png").stat().st_size > 1000
