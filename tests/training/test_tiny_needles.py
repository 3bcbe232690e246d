"""What is found in long texts, and the stage that trains it."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny import build, longer, needles
from mmspec.training.tiny.batch import collate
from mmspec.training.tiny.data import needle
from mmspec.training.tiny.evaluate import generate
from mmspec.training.tiny.train import Settings, State, export, train

BUNDLED = Path(needles.__file__).parents[2] / "bundled" / "tiny-vlm"
LENGTH = 900


def test_needles_lie_apart_and_the_text_has_the_length_asked_for() -> None:
    for seed in range(5):
        sample = needle(Random(seed), held_out=True, num_chars=4000, num_questions=4)
        document, questions = needles._parted(sample)
        assert 3800 < len(document) <= 4000
        lines = document.splitlines()
        places = sorted(lines.index(answer) for _, answer in questions)
        parts = [(place - i) * 4 // (len(lines) - 4) for i, place in enumerate(places)]
        assert parts == [0, 1, 2, 3], "each quarter of the real lines has one"


def test_an_answer_counts_as_exact_where_it_is_generated() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(BUNDLED).eval()
    rights = list(needles._ask(model, "needle", LENGTH, Random(3)))
    sample = needle(
        Random(3), held_out=True, num_chars=LENGTH - needles._ROOM, num_questions=needles.QUESTIONS
    )
    document, questions = needles._parted(sample)
    for (question, answer), right in list(zip(questions, rights, strict=True))[:3]:
        asked = needle(Random(3), held_out=True, num_chars=320)
        object.__setattr__(asked, "prompt_text", document + question)
        assert (generate(model, [asked], len(answer) + 5) == [answer]) == bool(right.all())
    (task, length, found), *_ = needles.measure(
        model, num_documents=1, lengths=[LENGTH], tasks=["needle"]
    )
    assert (task, length, found.questions) == ("needle", LENGTH, 8)
    assert 0 <= found.exact <= found.tokens_right <= 1 and found.tokens_right > 0.9


def test_jumps_reach_over_the_whole_context() -> None:
    samples = [needle(Random(seed), num_chars=300) for seed in range(12)]
    for context in (4096, 131072):
        positions = collate(samples, Random(1), gaps=1.0, context=context).positions
        assert positions.max() < context
        assert (positions.diff(dim=1) >= 1).all()
    assert positions.max() > build.MAX_POSITIONS


@pytest.mark.parametrize("minutes", [0, 10])
def test_the_long_stage_goes_on_from_a_finished_model(
    minutes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = build.build_model("nano", seed=3)
    export(begun, tmp_path / "finished")
    monkeypatch.setattr(longer, "draw", lambda progress, rng: [needle(rng, num_chars=300)])
    settings = Settings(
        tmp_path / "c.pt", minutes=minutes, size="nano", long_from=tmp_path / "finished"
    )
    reports = train(settings)
    taken = [report for report, _ in zip(reports, range(1), strict=False)]
    reports.close()
    state = State.fresh(settings)
    state.load(settings.checkpoint)
    text = state.average.config.text_config
    assert text.max_position_embeddings == longer.CONTEXT
    assert text.rope_parameters["factor"] == longer.CONTEXT / build.MAX_POSITIONS
    weight = begun.model.language_model.layers[0].mlp.up_proj.weight
    trained = state.model.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(trained, weight) == (minutes == 0)
    assert len(taken) == (minutes > 0)
    assert "needle" in taken[0].errors if taken else True


def test_half_of_the_batches_are_the_usual_ones() -> None:
    tasks = [longer.draw(0.5, Random(seed))[0] for seed in range(30)]
    long = [sample for sample in tasks if len(sample.prompt_text) > 1400]
    assert 8 <= len(long) <= 24
    rates = [longer.rate(step / 20) for step in range(21)]
    assert max(rates) <= longer.PEAK_RATE + 1e-6 and rates[0] < 2e-4 and rates[-1] <= 1e-6
