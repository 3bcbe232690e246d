"""A row of an automatic step, one law each: what its time buys, what it believes and scores."""

import pytest
from clocked import PLAIN_S, measured, step_s

from mmspec.controller import Pace
from mmspec.controller.account import Account
from mmspec.state import Preparation, Prices, Verdict
from mmspec.tree import TokenTree

ROOT, DRAFT_S = TokenTree.root(1), 0.3 * PLAIN_S
GOOD = TokenTree.chain(1, [2, 3, 4], [0.95] * 3, "d")
ONE = TokenTree.chain(1, [2], [0.95], "d")
WEAK = TokenTree.chain(1, [2, 3, 4, 5], [0.05, 0.0, 0.0, 0.0], "d")
NODE_SHARE = 0.1  # of a plain step: all of the weak tree costs 0.4 and saves 0.05


def pace_of(balance: float, probe: float, **options: bool) -> Pace:
    """Of a drafter that may still cost so many plain steps, and so many while it is doubted."""
    account = Account(balance_s=balance * PLAIN_S, probe_s=probe * PLAIN_S)
    return Pace(accounts={"d": account}, room=100, **options)


def test_time_buys_tokens_as_plain_steps_do_or_as_the_request_has_got_them_of_late() -> None:
    controller, pace = measured(1, 7, node_share=NODE_SHARE), pace_of(4.0, 0.0)
    for seconds, tokens, token_s in ((0.0, 0.0, 1.0), (2.0, 8.0, 0.25), (3.0, 2.0, 1.0)):
        pace.recent_s, pace.recent_tokens = seconds * PLAIN_S, tokens
        prices = controller.step([pace], 50).prices(0, "d")
        assert prices == Prices(
            pytest.approx(token_s * PLAIN_S),
            pytest.approx(NODE_SHARE * PLAIN_S),
            most_s=pytest.approx(2.0 * PLAIN_S),
        )


@pytest.mark.parametrize("pace", [Pace(speculate=True), Pace(keeps_trees=True)])
def test_time_does_not_matter_where_nothing_is_cut_and_is_not_known_at_first(pace: Pace) -> None:
    assert measured(1).step([pace], 50).prices(0, "d") is None
    assert measured().step([Pace()], 50).prices(0, "d") is None


def test_who_may_not_be_prepared_is_weighed_again_four_plain_steps_later() -> None:
    """This one among them."""
    controller, pace = measured(1, 3), pace_of(1.0, 1.0)
    step = controller.step([pace], 50)
    assert not step.prepares(0, "d", Preparation(seconds=1e6))
    step.cut([ROOT])
    step.observe([Verdict((0,), (2,))], PLAIN_S)
    assert pace.sleep_s == pytest.approx(3.0 * PLAIN_S)
    assert controller.step([pace], 50).sleeps(0)


@pytest.mark.parametrize(("is_drawn", "lost", "scored"), [(False, 0.3, 1), (True, 0.65, 5)])
def test_a_drawn_tree_is_scored_whole_and_is_worth_what_all_of_it_is(
    is_drawn: bool, lost: float, scored: int
) -> None:
    """So that is what must be there for another look at one that does not pay."""
    controller = measured(1, 3, 5, node_share=NODE_SHARE)
    step = controller.step([pace := pace_of(1.0, 0.0, keeps_trees=is_drawn)], 50)
    step.learn(0, "d", ROOT, WEAK, DRAFT_S)
    assert pace.worth.at("d", 0) == pytest.approx(-lost * PLAIN_S)
    assert step.cut([WEAK])[0].num_nodes == scored
    controller.costs.observe_draft("d", DRAFT_S)
    for probe in (0.45, 0.55, 0.7):  # the ask's own time, and a node of a fifth of a step
        pace.accounts["d"].probe_s = probe * PLAIN_S
        assert controller.step([pace], 50).asks(0, "d", ROOT) == (probe > max(lost, 0.5))


@pytest.mark.parametrize(("usual_s", "counted_s"), [(DRAFT_S, 2 * DRAFT_S), (None, 2 * PLAIN_S)])
def test_one_slow_proposal_counts_for_twice_the_usual(
    usual_s: float | None, counted_s: float
) -> None:
    """Before any was measured for two plain steps: the first pays for what is done only once."""
    controller, pace = measured(1), Pace()
    if usual_s is not None:
        controller.costs.observe_draft("d", usual_s)
    controller.step([pace], 50).learn(0, "d", ROOT, ROOT, 40 * PLAIN_S)
    assert pace.worth.at("d", 0) == pytest.approx(-counted_s)


@pytest.mark.parametrize("is_drawn", [False, True])
@pytest.mark.parametrize("probe", [0.45, 0.55])
def test_one_that_has_lost_what_it_may_is_looked_at_now_and_then(
    is_drawn: bool, probe: float
) -> None:
    """Though nothing is known of what asking it is worth."""
    controller = measured(1, node_share=NODE_SHARE)
    controller.costs.observe_draft("d", DRAFT_S)
    step = controller.step([pace_of(0.1, probe, keeps_trees=is_drawn)], 50)
    assert step.asks(0, "d", ROOT) == (probe > 0.5)


@pytest.mark.parametrize(("saved", "steps"), [(1.0, 10), (-1.0, 32)])
def test_one_that_is_believed_to_pay_waits_for_its_own_time_alone(saved: float, steps: int) -> None:
    """Which it earns by half a percent of each step. The other has lost too much for another look,
    but may have become quicker meanwhile."""
    controller, pace = measured(1, node_share=NODE_SHARE), pace_of(0.25, -1.0)
    controller.costs.observe_draft("d", DRAFT_S)
    pace.worth.learn("d", 0, saved * PLAIN_S, cost_steps=0.3)
    step = controller.step([pace], 50)
    assert step.asks(0, "d", ROOT, least_s=0.2 * PLAIN_S) == (saved > 0.0), "if it can do less"
    assert not step.asks(0, "d", ROOT)
    step.observe([Verdict((0,), (2,))], PLAIN_S)
    assert pace.sleep_s == pytest.approx((steps - 1) * PLAIN_S)


@pytest.mark.parametrize(("saved", "least"), [(-1.0, 0.5), (-0.1, 0.3), (0.0, 0.275)])
def test_another_look_takes_what_it_is_believed_to_lose_and_a_node(
    saved: float, least: float
) -> None:
    """All or a quarter of its time; a node is taken to cost a fifth of a plain step."""
    controller = measured(1, node_share=NODE_SHARE)
    controller.costs.observe_draft("d", DRAFT_S)
    for probe in (least - 0.01, least + 0.01):
        pace = pace_of(1.0, probe)
        pace.worth.learn("d", 0, saved * PLAIN_S, cost_steps=0.3)
        assert controller.step([pace], 50).asks(0, "d", ROOT) == (probe > least)


@pytest.mark.parametrize("is_drawn", [False, True])
def test_a_single_node_is_worth_what_it_saves(is_drawn: bool) -> None:
    pace = pace_of(1.0, 0.0, keeps_trees=is_drawn)
    step = measured(1, 3, node_share=NODE_SHARE).step([pace], 50)
    step.learn(0, "d", ROOT, ONE, DRAFT_S)
    assert pace.worth.at("d", 0) == pytest.approx((0.95 - NODE_SHARE) * PLAIN_S - DRAFT_S)


@pytest.mark.parametrize(
    ("balance", "saved", "tree", "scored"),
    [
        (1.0, 1.0, GOOD, 4),  # believed to pay
        (1.0, 1.0, WEAK, 1),
        (1.0, -1.0, GOOD, 4),  # doubted: a node at least
        (1.0, -1.0, WEAK, 2),
        (0.0, 1.0, GOOD, 2),  # has lost what it may: a node at most
        (0.0, 1.0, WEAK, 2),
    ],
)
def test_of_a_drafter_that_is_looked_at_a_node_is_scored(
    balance: float, saved: float, tree: TokenTree, scored: int
) -> None:
    controller, pace = measured(1, 3, 5, node_share=NODE_SHARE), pace_of(balance, 2.0)
    controller.costs.observe_draft("d", DRAFT_S)
    pace.worth.learn("d", 0, saved * PLAIN_S, cost_steps=0.3)
    step = controller.step([pace], 50)
    assert step.asks(0, "d", ROOT)
    step.learn(0, "d", ROOT, tree, DRAFT_S)
    assert step.cut([tree])[0].num_nodes == scored


def test_a_request_goes_by_what_it_has_seen_itself_beside_others() -> None:
    controller, paces = measured(1, 5, rows=2), [Pace(room=100), Pace(room=100)]
    controller.costs.observe_draft("d", DRAFT_S)
    for _ in range(9):
        step = controller.step(paces, 50)
        step.learn(0, "d", ROOT, GOOD, DRAFT_S)
        step.learn(1, "d", ROOT, ROOT, DRAFT_S)
    step = controller.step(paces, 50)
    assert [step.asks(row, "d", ROOT) for row in (0, 1)] == [True, False]


def test_what_became_of_its_own_nodes_tells_a_request_more_than_what_became_of_others() -> None:
    controller, paces = measured(1, 4, node_share=NODE_SHARE), [Pace(), Pace()]
    right, wrong = Verdict((0, 1, 2, 3), (2, 3, 4, 5)), Verdict((0,), (9,))
    for pace, verdict in zip(paces * 9, (right, wrong) * 9, strict=True):
        step = controller.step([pace], 50)
        nodes = step.cut([GOOD])[0].num_nodes
        step.observe([verdict if nodes == 4 else wrong], step_s(nodes, NODE_SHARE))
    trees = [controller.step([pace], 50).cut([GOOD])[0] for pace in paces]
    assert [tree.num_nodes for tree in trees] == [4, 1]


def test_what_comes_too_late_is_booked_for_those_who_had_nothing_to_say() -> None:
    """Those who had something are asked again."""
    controller, paces = measured(1, 5, rows=2), [Pace(room=100), Pace(room=100)]
    step = controller.step(paces, 50)
    assert not step.drop([WEAK, ROOT]), "nothing of it would have been scored"
    for row, tree in enumerate((ONE, ROOT)):
        assert step.asks(row, "d", ROOT)
        step.learn(row, "d", ROOT, tree, DRAFT_S)
    assert step.drop([ONE, ROOT])
    step.cut([ROOT, ROOT])
    step.spent(2 * DRAFT_S)
    step.observe([Verdict((0,), (2,))] * 2, 0.0)
    balances = [pace.accounts["d"].balance_s for pace in paces if pace.accounts]
    assert balances == [pytest.approx(0.5 * PLAIN_S - DRAFT_S)]
