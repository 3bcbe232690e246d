"""Whole scenarios at random, a few of them; `scripts/fuzz.py` draws more, for as long as it may."""

import pytest
from fuzz import run

from mmspec.kv.layer import FlatLayer
from mmspec.target import Target

# With drafters that are right at times: two engines, a rule that divides by q, an iterator that is
# left, a chat, a file, requests that are meddled with, weights that are written to, transformers.
SEEDS = (9114, 9123, 9131, 9134, 9141, 9152)


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


def test_keys_that_are_kept_beyond_a_write_to_the_weights_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Target, "fingerprint", 0)
    assert any("first mismatch at token" in each for each in run(9417).wrong)
