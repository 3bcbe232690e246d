"""The training loop: it starts, at larger sizes too, and goes on where it was killed."""

from pathlib import Path

import pytest
import torch

from mmspec.training.tiny import curriculum
from mmspec.training.tiny.data import Sample
from mmspec.training.tiny.train import Report, Settings, State, train


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one sample, so that a step takes no time worth waiting for."""
    draw = curriculum.draw

    def first(progress: float, rng: object) -> list[Sample]:
        return draw(progress, rng)[:1]  # type: ignore[arg-type]

    monkeypatch.setattr(curriculum, "draw", first)


def take(settings: Settings, count: int) -> list[Report]:
    reports = train(settings)
    taken = [next(reports) for _ in range(count)]
    reports.close()  # as a signal does it
    return taken


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    short(monkeypatch)
    settings = Settings(tmp_path / "checkpoint.pt", minutes=10, size="nano", resume=True)
    before = take(settings, 3)
    stopped = State.fresh(settings)
    stopped.load(settings.checkpoint)
    after = take(settings, 2)
    assert [report.step for report in before + after] == [1, 2, 3, 4, 5]
    assert after[0].tokens > before[-1].tokens and after[0].trained_s > before[-1].trained_s
    gone_on = State.fresh(settings)
    gone_on.load(settings.checkpoint)
    assert stopped.step == 3 and gone_on.step == 5
    old, new = (
        state.model.model.vision_tower.embeddings.patch_embedding.weight
        for state in (stopped, gone_on)
    )
    assert not torch.equal(old, new)


def test_a_step_without_resume_starts_afresh(tmp_path: Path, monkeypatch) -> None:
    short(monkeypatch)
    settings = Settings(tmp_path / "checkpoint.pt", minutes=10, size="nano")
    assert [report.step for report in take(settings, 2) + take(settings, 1)] == [1, 2, 1]


@pytest.mark.slow
def test_the_25m_reference_starts(tmp_path: Path, monkeypatch) -> None:
    short(monkeypatch)
    monkeypatch.setattr(curriculum, "stage", lambda _: "mix")
    monkeypatch.setattr(curriculum, "MIX", {"caption": 1.0})
    monkeypatch.setattr(State, "save", lambda self, path: None)  # 400 MB
    report = next(train(Settings(tmp_path / "checkpoint.pt", minutes=10, size="25m")))
    assert report.step == 1 and report.tokens > 0 and 0 < report.errors["caption"] <= 1
