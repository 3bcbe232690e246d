"""What is measured of the bundled models, and that their papers say just that."""

from pathlib import Path
from random import Random

import pytest
import tiny_tables
import torch
from transformers import LlavaForConditionalGeneration

from mmspec.target.load import BUNDLED, resolve_path
from mmspec.training.tiny import report
from mmspec.training.tiny.acceptance import accept, compare
from mmspec.training.tiny.build import build_model, build_processor
from mmspec.training.tiny.evaluate import SUITE, evaluate, held_out

DOCS = BUNDLED.parents[1] / "docs" / "bundled_model.md"
NAMES = ("tiny-vlm", "nano-vlm")


def bundled(name: str) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(resolve_path(name)).eval()


def peaked(*tokens: int) -> torch.Tensor:
    """Logits that are sure of these tokens, of a vocabulary of 6."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 6) * 100.0


def test_a_model_accepts_itself() -> None:
    model = build_model("nano").eval()
    ((_, row),) = accept(model, model, num_samples=1, tasks=["caption"])
    assert (row.top_1, row.top_4) == (1, 1) and row.overlap == pytest.approx(1)
    assert 4 < row.tokens_a_step <= 5


def test_acceptance_counts_hits_and_steps() -> None:
    """Target 0 1 2 3 4 0 1, drafter wrong at the third and the last token: two drafts accepted and
    the third token is the target's own, then four more are."""
    row = compare([(peaked(0, 1, 2, 3, 4, 0, 1), peaked(0, 1, 5, 3, 4, 0, 5))])
    assert row.tokens == 7
    assert row.top_1 == pytest.approx(5 / 7) and row.overlap == pytest.approx(5 / 7)
    assert row.tokens_a_step == pytest.approx(7 / 2)


def test_top_4_counts_the_likely_tokens_behind_the_first() -> None:
    target, drafter = peaked(3), torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, -1.0]])
    assert compare([(target, drafter)]).top_4 == 1
    assert compare([(peaked(4), drafter)]).top_4 == 0


def test_slow_tasks_get_fewer_samples() -> None:
    assert len(held_out("quote_8k", num_samples=30, seed=2)) == 10
    assert len(held_out("story", num_samples=3, seed=2)) == 3


def test_a_case_is_held_out_and_as_long_as_it_says() -> None:
    for task, case in SUITE.items():
        sample = case.sample(Random(1))
        assert task.startswith(sample.task)
        if case.num_chars:
            assert case.num_chars * 0.9 < len(sample.prompt_text) < case.num_chars * 1.4


def test_a_report_keeps_what_it_does_not_measure(tmp_path: Path) -> None:
    build_model("nano").save_pretrained(tmp_path)
    build_processor().save_pretrained(tmp_path)
    report.save_report(tmp_path, {"tokens": 7, "scores": {"story": {"samples": 1, "loops": 0.5}}})
    rows = report.write_report(tmp_path, num_samples=1, tasks=["extract_500"], target=tmp_path)
    assert [task for task, _ in rows] == ["extract_500", "extract_500"]
    read = report.read_report(tmp_path)
    assert read["tokens"] == 7 and list(read["scores"]) == ["extract_500", "story"]
    assert read["scores"]["extract_500"]["samples"] == 1
    assert read["loops"] == (0.5 + read["scores"]["extract_500"]["loops"]) / 2
    assert read["target"] == tmp_path.name
    assert read["acceptance"]["extract_500"]["top_1"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_card_and_documentation_show_the_measured_figures(name: str) -> None:
    folder = BUNDLED / name
    measured = report.read_report(folder)
    card, docs = (folder / "README.md").read_text(), DOCS.read_text()
    tables = [tiny_tables.score_table(measured)]
    if "acceptance" in measured:
        tables.append(tiny_tables.acceptance_table(measured))
    for table in tables:
        for line in table.splitlines():
            assert line in card and line in docs
    parameters = sum(parameter.numel() for parameter in bundled(name).parameters())
    assert measured["parameters"] == parameters
    assert f"{parameters:,}" in card and f"{parameters:,}" in docs


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_are_small_and_found_by_name(name: str) -> None:
    folder = Path(resolve_path(name))
    assert folder == BUNDLED / name
    assert (folder / "model.safetensors").stat().st_size <= 16e6
    assert (folder / "tokenizer.json").read_bytes() == (
        BUNDLED / "tiny-vlm" / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize("task", ["receipt", "caption", "scan", "quote_500"])
def test_bundled_model_is_right_on_held_out_samples(task: str) -> None:
    """A floor well below its measured figures: the weights belong to these data."""
    ((_, result, pairs),) = evaluate(bundled("tiny-vlm"), num_samples=2, tasks=[task])
    wrong = "\n".join(f"{answer!r}\n{sample.answer!r}" for sample, answer in pairs)
    assert result.character_error < 0.1, wrong


@pytest.mark.parametrize(
    ("task", "floor"), [("receipt", 0.9), ("caption", 0.9), ("quote_500", 0.8), ("story", 0.6)]
)
def test_bundled_sibling_says_what_the_model_says(task: str, floor: float) -> None:
    """A floor well below its measured acceptance."""
    ((_, row),) = accept(bundled("tiny-vlm"), bundled("nano-vlm"), num_samples=1, tasks=[task])
    assert row.top_1 > floor and row.top_4 > 0.8
