"""CostModel: medians of what was measured, interpolated by nodes, borrowed from the nearest."""

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmspec.controller.costs import CostModel
from mmspec.state import Preparation

BUDGETS = (0, 1, 3, 8, 16)


def measured(*steps: tuple[int, float], rows: int = 1, context: int = 100) -> CostModel:
    costs = CostModel()
    for nodes in dict(steps):  # the first step of a size does not count
        costs.observe_step(rows, nodes, context, 1e9)
    for nodes, seconds in steps:
        costs.observe_step(rows, nodes, context, seconds)
    return costs


def expected_s(costs: CostModel, rows: int = 1) -> list[float]:
    """Of steps that score so many drafted nodes."""
    return [costs.step(rows, 100).seconds(budget) for budget in BUDGETS]


def test_nothing_is_expected_before_anything_was_measured() -> None:
    assert not CostModel().step(1, 100).is_known
    assert CostModel().draft_s("any") is None
    assert not CostModel().knows(1, 100)


@given(st.lists(st.floats(0.5, 1.5), min_size=1, max_size=9))
def test_an_estimate_is_the_median_of_the_last_nine(seconds: list[float]) -> None:
    costs = measured(*[(1, 50.0)] * 9, *[(1, s) for s in seconds * 9])
    assert min(seconds) <= costs.step(1, 100).plain_s <= max(seconds)


def test_one_slow_step_does_not_move_it() -> None:
    assert measured((1, 1.0), (1, 1.0), (1, 30.0)).step(1, 100).plain_s == 1.0


def test_between_measured_sizes_it_is_interpolated_and_beyond_them_the_slope_goes_on() -> None:
    assert expected_s(measured((1, 1.0), (9, 9.0))) == pytest.approx([1, 2, 4, 9, 17])


def test_before_a_tree_was_measured_a_node_is_believed_to_cost_little() -> None:
    expected = expected_s(measured((1, 1.0)))
    assert expected == sorted(expected) and expected[-1] < 1.5


def test_a_noisy_curve_never_promises_that_more_nodes_cost_less_than_measured() -> None:
    assert expected_s(measured((1, 2.0), (4, 1.0)))[-1] == 1.0


def test_another_size_borrows_the_nearest_ones_costs_until_it_has_its_own() -> None:
    costs = measured((1, 1.0))
    for _ in range(2):
        costs.observe_step(4, 1, 100, 3.0)
    borrowed = costs.step(3, 100)
    assert (borrowed.plain_s, borrowed.row_plain_s) == (3.0, 1.0)
    for _ in range(2):
        costs.observe_step(4, 1, 10_000, 9.0)
    assert [costs.step(3, context).plain_s for context in (60, 1000, 3000)] == [3.0, 3.0, 9.0]
    assert not costs.knows(3, 100)
    assert costs.knows(4, 127) and not costs.knows(4, 128)  # contexts by powers of two


def test_drafters_are_told_apart() -> None:
    costs = CostModel()
    costs.observe_draft("quick", 0.1)
    costs.observe_draft("slow", 5.0)
    assert (costs.draft_s("quick"), costs.draft_s("slow")) == (0.1, 5.0)


def test_what_the_first_proposals_pay_once_is_not_what_they_cost() -> None:
    costs = CostModel()
    for seconds in (3.0, 5.0, 0.1, 0.1, 0.1):
        costs.observe_draft("compiled", seconds)
    assert costs.draft_s("compiled") == 0.1


def test_one_slow_proposal_is_believed_less_and_less() -> None:
    costs = CostModel()
    for _ in range(5):
        costs.observe_draft("slow", 3.0)
    costs.observe_draft("once", 3.0)
    for _ in range(290):
        costs.observe_step(1, 1, 100, 1.0)
    assert costs.draft_s("once") == pytest.approx(0.1)
    assert costs.draft_s("slow") == 3.0


def test_what_is_due_takes_what_the_target_takes_for_such_work() -> None:
    """Corrected, from the second time on, by how far that was wrong for the drafter."""
    costs, took = CostModel(), {"plain_s": 0.1, "node_s": 0.01}
    due = Preparation(steps=2.0, tokens=10.0, seconds=0.5)
    assert costs.preparation_s("d", due, **took) == pytest.approx(0.2 + 0.1 + 0.5)
    costs.observe_prompt(0.03)
    assert costs.preparation_s("d", due, **took) == pytest.approx(1.0)
    for seconds, expected in ((50.0, 1.0), (3.0, 3.0), (5.0, 4.0)):
        costs.observe_preparation("d", due, seconds, **took)
        assert costs.preparation_s("d", due, **took) == pytest.approx(expected)
    assert costs.preparation_s("other", due, **took) == pytest.approx(1.0)
    assert costs.preparation_s("d", Preparation(), **took) > 0.0, "so that it is corrected, too"


def test_steps_of_other_threads_may_be_measured_while_one_is_weighed() -> None:
    costs, failures, interval = CostModel(), list[BaseException](), sys.getswitchinterval()
    is_over = threading.Event()

    def weigh() -> None:
        try:
            while not is_over.is_set():
                costs.step(-1, 100)  # a size that was never measured: all are looked through
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=weigh) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for rows in range(1, 1500):
            costs.observe_step(rows, 1, 100, 0.1)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failures
