"""Whole scenarios at random, a few of them; `scripts/fuzz.py` draws more, for as long as it may."""

import pytest
from fuzz import run

from mmspec.kv.layer import FlatLayer

# Several rounds each, with drafters that are right at times; one is through transformers.
SEEDS = (9106, 9108, 9115, 9128, 9129)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_of_a_scenario_is_that_of_plain_decoding_alone(seed: int) -> None:
    report = run(seed)
    assert not report.wrong, f"{report.title}: " + "; ".join(report.wrong)
    assert report.refused is None and report.accepted


def test_a_commit_that_leaves_keys_where_they_were_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FlatLayer, "move", lambda self, destination, source: None)
    assert any("first mismatch at token" in each for each in run(9128).wrong)
