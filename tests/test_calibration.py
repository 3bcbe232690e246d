"""Calibration: acceptance rates that start at a prior and follow what is seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.calibration import Calibration

priors = st.floats(0.01, 0.99)
histories = st.lists(st.booleans(), max_size=120)


def after(history: list[bool], **options: float) -> Calibration:
    calibration = Calibration(**options)
    for accepted in history:
        calibration.observe("bucket", accepted)
    return calibration


# LAW


@given(priors)
def test_an_unseen_bucket_has_the_callers_prior(prior: float) -> None:
    assert Calibration().rate("bucket", prior) == pytest.approx(prior)


def test_the_prior_weighs_as_many_observations_as_it_says() -> None:
    assert after([True], prior_weight=4.0).rate("bucket", 0.5) == pytest.approx(3 / 5)
    assert after([False], prior_weight=1.0).rate("bucket", 0.5) == pytest.approx(1 / 4)


@given(histories, priors)
def test_a_rate_rises_when_accepted_and_falls_when_rejected(
    history: list[bool], prior: float
) -> None:
    now = after(history).rate("bucket", prior)
    assert after([*history, True]).rate("bucket", prior) > now
    assert after([*history, False]).rate("bucket", prior) < now


@given(histories, priors)
def test_a_rate_is_a_probability_and_never_certain(history: list[bool], prior: float) -> None:
    assert 0.0 < after(history).rate("bucket", prior) < 1.0


def test_buckets_learn_apart() -> None:
    calibration = after([True] * 50)
    assert calibration.rate("other", 0.3) == pytest.approx(0.3)


@given(histories, histories, priors)
def test_what_others_have_shown_is_the_prior_of_one_that_learns_with_them(
    others: list[bool], own: list[bool], prior: float
) -> None:
    shared = after(others, decay=0.998)
    calibration = Calibration(shared=shared)
    for accepted in own:
        calibration.observe("bucket", accepted)
    known = after([*others, *own], decay=0.998).rate("bucket", prior)
    assert shared.rate("bucket", prior) == known
    assert calibration.rate("bucket", prior) == after(own).rate("bucket", known)


def test_asking_leaves_no_trace() -> None:
    calibration = Calibration()
    before = calibration.rate("bucket", 0.3)
    calibration.rate("bucket", 0.9)
    assert calibration.rate("bucket", 0.3) == before


def test_old_observations_fade() -> None:
    changed = [True] * 100 + [False] * 30
    forgetful = after(changed, decay=0.9).rate("bucket", 0.5)
    assert forgetful < 0.2, "the last thirty were all rejected"
    assert after(changed, decay=1.0).rate("bucket", 0.5) > 0.7


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_rate_comes_to_what_is_seen(probability: float) -> None:
    drawn = np.random.default_rng(0).random(1000) < probability
    rate = after(drawn.tolist(), decay=0.999).rate("bucket", 1 - probability)
    assert rate == pytest.approx(probability, abs=0.05)
