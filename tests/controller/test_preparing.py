"""Preparing: what it may cost, what is booked of it, and who pays."""

import pytest

from mmspec.controller import Pace
from mmspec.controller.costs import CostModel
from mmspec.controller.outlay import Outlay
from mmspec.controller.preparing import Preparing
from mmspec.controller.step_cost import StepCost
from mmspec.state import Preparation, Verdict

PLAIN_S = 0.01
KNOWN = StepCost(2, {1: PLAIN_S})  # two rows: each one's share is half of it
DUE = Preparation(steps=2.0)  # expected to take two plain steps
THREE_TOKENS = Verdict((0, 1, 2), (5, 6, 7))


def test_a_prompt_tells_once_what_its_tokens_took_to_read() -> None:
    costs, reading = CostModel(), Preparation(tokens=10.0)
    for token_s, expected_s in ((3.0, 30.0), (None, 30.0), (5.0, 40.0)):  # the median
        pace = Pace(room=1, token_s=token_s)
        assert not Preparing(costs, {}, KNOWN).is_worth(pace, "d", reading)
        assert pace.unprepared_s == {"d": pytest.approx(expected_s)}
        assert pace.token_s is None


def test_the_first_preparation_is_booked_as_expected_and_others_as_they_were() -> None:
    """It pays for what is done only once."""
    outlays = dict[str, Outlay]()
    preparing = Preparing(CostModel(), outlays, KNOWN)
    balance = 8.0
    for took, booked in ((50.0, 2.0), (3.0, 3.0), (0.5, 0.5)):  # in plain steps
        preparing.book(Pace(), "d", DUE, took * PLAIN_S)
        balance -= booked
        assert outlays["d"].balance_s == pytest.approx(balance * PLAIN_S)
    assert preparing.spent_s == pytest.approx(53.5 * PLAIN_S)
    quick = Preparing(CostModel(), outlays, KNOWN)
    quick.book(Pace(), "other", DUE, PLAIN_S)  # less than expected
    assert outlays["other"].balance_s == pytest.approx(7.0 * PLAIN_S)


def test_a_preparation_that_was_asked_for_is_measured_but_not_booked() -> None:
    costs, outlays = CostModel(), dict[str, Outlay]()
    for _ in range(2):  # the first one teaches nothing
        Preparing(costs, outlays, KNOWN).book(Pace(speculate=True), "d", DUE, 6 * PLAIN_S)
    assert not outlays
    expected_s = costs.preparation_s("d", DUE, plain_s=PLAIN_S, node_s=0.0)
    assert expected_s == pytest.approx(6 * PLAIN_S)


def test_before_a_plain_step_is_known_nothing_is_booked_nor_settled() -> None:
    outlays = {"d": Outlay(1.0)}
    preparing = Preparing(CostModel(), outlays, StepCost(1))
    preparing.book(pace := Pace(prepared_s={"d": 1.0}), "d", DUE, 3.0)
    preparing.settle(pace, {"d": 1.0}, THREE_TOKENS, 1.0)
    assert outlays == {"d": Outlay(1.0)} and preparing.spent_s == 3.0


@pytest.mark.parametrize("is_prepared", [True, False])
@pytest.mark.parametrize("verdict", [THREE_TOKENS, None])
def test_a_step_earns_for_all_and_saves_for_who_was_prepared(
    is_prepared: bool, verdict: Verdict | None
) -> None:
    outlays, expected = {"d": Outlay(0.0)}, Outlay(0.0)
    pace = Pace(prepared_s={"d": 1.0} if is_prepared else {})
    Preparing(CostModel(), outlays, KNOWN).settle(pace, {"d": 0.002}, verdict, 0.1)
    if is_prepared and verdict is not None:
        expected.saved(0.002, 3, PLAIN_S / 2)
    expected.earn(0.1, PLAIN_S)
    assert outlays == {"d": expected}


def test_a_step_that_was_pinned_settles_nothing() -> None:
    outlays = {"d": Outlay(0.0)}
    pinned = Pace(speculate=True, prepared_s={"d": 1.0})
    Preparing(CostModel(), outlays, KNOWN).settle(pinned, {"d": 0.1}, THREE_TOKENS, 0.1)
    assert outlays == {"d": Outlay(0.0)}


def test_what_can_wait_is_weighed_by_all_texts_to_come_and_is_not_told_as_left() -> None:
    """What it brings is not this text's alone. What lasts for a few tokens brings no more."""
    preparing = Preparing(CostModel(), {"d": Outlay(1.0)}, KNOWN)
    text = Pace(room=100)
    for due, is_worth in (
        (Preparation(steps=3.0), True),  # 64 tokens to come, each a tenth of the batch's step
        (Preparation(steps=4.0), False),
        (Preparation(steps=3.0, lasts_tokens=20.0), False),
        (Preparation(steps=1e6, can_wait=True), True),
    ):
        assert preparing.is_worth(text, "d", due) == is_worth, due
    assert list(text.unprepared_s.values()) == [pytest.approx(3 * PLAIN_S)]
    broke = Preparing(CostModel(), {"d": Outlay(-1.0)}, KNOWN)
    assert not broke.is_worth(pace := Pace(room=100), "d", Preparation(can_wait=True))
    assert not pace.unprepared_s
