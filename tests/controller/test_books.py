"""The controller's books, one law each: what is believed, what may be spent, what is forgotten."""

import pytest

from mmspec.calibration import Calibration
from mmspec.controller.account import Account
from mmspec.controller.asked import Ask, owners_of
from mmspec.controller.fixed import FixedController
from mmspec.controller.outlay import Outlay
from mmspec.controller.outlook import BUDGETS, Outlook
from mmspec.controller.pace import Pace
from mmspec.controller.step_cost import StepCost
from mmspec.controller.worth import Worth, alone, nearest, standing_of
from mmspec.state import Verdict
from mmspec.tree import TokenTree

PLAIN_S = 0.01
CHAIN = TokenTree.chain(1, [2, 3, 4], [0.9, 0.5, 0.25], "d")


# Account


def test_a_drafter_may_lose_one_plain_step_and_half_a_percent_of_the_time() -> None:
    account = Account.opened(PLAIN_S)
    assert (account.balance_s, account.probe_s) == (PLAIN_S, PLAIN_S / 4)
    account.earn(-PLAIN_S, step_s=1.0, plain_s=PLAIN_S)
    assert account.balance_s == pytest.approx(0.005)
    assert account.probe_s == pytest.approx(PLAIN_S / 4 + 0.005)


def test_what_was_saved_can_be_lost_again_up_to_20_plain_steps() -> None:
    account = Account.opened(PLAIN_S)
    account.earn(0.05, step_s=0.0, plain_s=PLAIN_S)
    assert account.balance_s == pytest.approx(0.06)
    account.earn(5.0, step_s=100.0, plain_s=PLAIN_S)
    assert account.balance_s == account.probe_s == 20 * PLAIN_S


def test_asks_that_saved_buy_more_of_their_own_kind() -> None:
    account = Account.opened(PLAIN_S)
    account.turned_out(2, 0.008, is_probe=True, plain_s=PLAIN_S)
    asks = account.beside(2)
    assert (asks.saved_s, asks.probe_s) == (pytest.approx(0.002), pytest.approx(0.002))
    assert account.beside(1).probe_s == 0.0
    account.turned_out(2, 100.0, is_probe=False, plain_s=PLAIN_S)
    assert asks.probe_s == 20 * PLAIN_S
    assert asks.saved_s == pytest.approx(0.75 * 0.002 + 0.25 * 100.0)


def test_an_ask_that_lost_is_paid_by_its_kind_first_and_then_by_the_drafter() -> None:
    account = Account(PLAIN_S, probe_s=0.004)
    account.beside(0).probe_s = 0.001
    account.turned_out(0, -0.003, is_probe=False, plain_s=PLAIN_S)  # believed to pay: no probe
    assert (account.beside(0).probe_s, account.probe_s) == (0.001, 0.004)
    account.turned_out(0, -0.003, is_probe=True, plain_s=PLAIN_S)
    assert (account.beside(0).probe_s, account.probe_s) == (0.0, pytest.approx(0.002))
    assert account.beside(0).saved_s < 0.0


def test_a_drafter_waits_for_what_asking_it_costs_or_for_a_probes_own_account() -> None:
    """Of its share of the time, whichever is there first; a probe has its kind's, too."""
    account = Account(balance_s=0.01, probe_s=0.002)
    account.beside(1).probe_s = 0.001
    assert account.wait_s(1, cost_s=0.01, probe_s=1.0) == 0.0
    assert account.wait_s(1, cost_s=1.0, probe_s=0.003) == 0.0
    assert account.wait_s(1, cost_s=0.02, probe_s=1.0) == pytest.approx(0.01 / 0.005)
    assert account.wait_s(1, cost_s=1.0, probe_s=0.004) == pytest.approx(0.001 / 0.005)
    assert account.wait_s(0, cost_s=1.0, probe_s=0.004) == pytest.approx(0.002 / 0.005)


# Outlay


def test_preparations_stop_when_they_have_cost_8_plain_steps_more_than_they_saved() -> None:
    outlay = Outlay.opened(PLAIN_S)
    outlay.paid(8 * PLAIN_S)
    assert outlay.balance_s == 0.0 and outlay.allows(0.0, 1, PLAIN_S)
    outlay.paid(0.001)
    assert not outlay.allows(0.0, 1, PLAIN_S)
    outlay.saved(0.001, 4, PLAIN_S)
    assert outlay.allows(0.0, 1, PLAIN_S)


def test_a_preparation_must_be_able_to_save_twice_its_cost() -> None:
    """Before anything is known a token is hoped to save a fifth of a plain step."""
    outlay = Outlay.opened(PLAIN_S)
    assert outlay.allows(PLAIN_S, 10.01, PLAIN_S) and not outlay.allows(PLAIN_S, 9, PLAIN_S)
    assert outlay.could_pay(PLAIN_S, 10.01, PLAIN_S) and not outlay.could_pay(PLAIN_S, 9, PLAIN_S)
    for _ in range(2):
        outlay.saved(6 * PLAIN_S, 12, PLAIN_S)
    assert outlay.token_steps == pytest.approx(0.5)
    assert outlay.could_pay(PLAIN_S, 4.01, PLAIN_S) and not outlay.could_pay(PLAIN_S, 3, PLAIN_S)
    outlay.saved(-1.0, 12, PLAIN_S)
    assert outlay.token_steps == 0.2


def test_the_newest_steps_tell_what_a_preparation_saves() -> None:
    outlay = Outlay.opened(PLAIN_S)
    outlay.saved(10 * PLAIN_S, 10, PLAIN_S)
    for _ in range(1000):
        outlay.saved(5 * PLAIN_S, 10, PLAIN_S)
    assert outlay.token_steps == pytest.approx(0.5, rel=1e-3)


def test_time_earns_preparations_half_a_percent_up_to_eight_of_the_newest_or_of_plain_steps() -> (
    None
):
    outlay = Outlay(0.0)
    outlay.earn(1.0, PLAIN_S)
    assert outlay.balance_s == pytest.approx(0.005)
    outlay.earn(1e6, PLAIN_S)
    assert outlay.balance_s == 8 * PLAIN_S
    outlay.paid(3 * PLAIN_S)
    outlay.earn(1e6, PLAIN_S)
    assert outlay.balance_s == 24 * PLAIN_S


# Worth


def test_worth_rises_slowly_and_falls_as_quickly_as_being_wrong_costs() -> None:
    worth = Worth()
    worth.learn("d", 0, 1.0, cost_steps=0.1)
    assert worth.at("d", 0) == 1.0, "the first proposal is all that is known"
    worth.learn("d", 0, 2.0, cost_steps=0.1)
    assert worth.at("d", 0) == pytest.approx(1.15)
    worth.learn("d", 0, 0.15, cost_steps=0.1)  # a fifth of the way
    assert worth.at("d", 0) == pytest.approx(0.95)
    worth.learn("d", 0, -0.05, cost_steps=10.0)  # half of it at most
    assert worth.at("d", 0) == pytest.approx(0.45)
    worth.learn("new", 0, 2.0, cost_steps=0.1, prior_s=1.0)
    assert worth.at("new", 0) == pytest.approx(1.15) and worth.at("new", 1) is None


def test_worth_beside_a_tree_is_that_beside_the_next_lesser_one() -> None:
    own, shared = Worth(), Worth()
    for standing, saved_s in ((1, 5.0), (3, 2.0)):
        shared.learn("d", standing, saved_s, cost_steps=0.1)
    own.learn("d", 3, 7.0, cost_steps=0.1)
    found = [nearest(own, shared, "d", standing) for standing in range(5)]
    assert found == [None, 5.0, 5.0, 7.0, 7.0]
    assert alone(own, shared, "d") == 5.0 and alone(own, shared, "other") is None


def test_a_trees_standing_doubles_with_what_it_promises() -> None:
    trees = [TokenTree.chain(1, range(2, 2 + n), [1.0] * n, "d") for n in range(9)]
    assert [standing_of(tree) for tree in trees] == [0, 2, 2, 3, 3, 3, 3, 4, 4]


# Pace


def test_a_requests_speed_is_that_of_its_newest_steps() -> None:
    pace = Pace()
    for tokens, seconds in ((1, 0.2), (3, 0.1)):
        pace.got(tokens, seconds)
    assert pace.num_tokens == 1 + 1 + 3
    assert pace.recent_s == pytest.approx(0.9 * 0.2 + 0.1)
    assert pace.recent_tokens == pytest.approx(0.9 * 1 + 3)


def test_what_is_told_of_a_request_is_a_steps_mean() -> None:
    assert (Pace().choices.expected_tokens_per_step, Pace().choices.plain_step_s) == (1.0, 0.0)
    pace = Pace(expected_tokens=10.0, plain_s=0.4)
    pace.budgets.update({3: 3, 0: 1})
    assert pace.choices.expected_tokens_per_step == 2.5
    assert pace.choices.plain_step_s == pytest.approx(0.1)
    assert list(pace.choices.budgets) == [0, 3]


@pytest.mark.parametrize(
    ("ended", "room", "num_tokens", "to_come"),
    [
        ([], 1000, 10, 54),  # 64 tokens are usual before any text has ended
        ([], 30, 10, 30),
        ([], 1000, 100, 100),  # a long text may well get twice as long
        ([30, 10, 20], 1000, 5, 15),
        ([1] * 9 + [50] * 5, 1000, 5, 45),  # the median of the newest nine
    ],
)
def test_a_text_gets_as_long_as_others_or_twice_as_long_as_it_is(
    ended: list[int], room: int, num_tokens: int, to_come: int
) -> None:
    pace = Pace(room=room, num_tokens=num_tokens)
    for length in ended:
        pace.lengths.observe(length)
    assert pace.tokens_to_come == to_come


# StepCost

COST = StepCost(2, {1: 1.0, 5: 1.4})


def test_a_steps_cost_is_that_of_the_next_size_that_is_weighed() -> None:
    assert [COST.seconds(n) for n in (0, 6, 7, 8)] == pytest.approx([1.0, 1.6, 1.8, 1.8])
    assert COST.seconds(10_000) == COST.seconds(BUDGETS[-1])
    bent = StepCost(1, {1: 1.0, 3: 1.2, 5: 2.0})
    assert [bent.seconds(n) for n in range(6)] == pytest.approx([1.0, 1.1, 1.2, 1.6, 2.0, 2.25])


def test_a_rows_share_is_a_batchs_over_its_rows() -> None:
    assert (COST.row_plain_s, COST.row_node_s) == (0.5, pytest.approx(0.05))
    falling = StepCost(1, {1: 1.0, 7: 0.994})
    assert falling.row_node_s == 0.0, "no node is believed to give time back"


def test_a_probes_node_is_never_free() -> None:
    assert COST.probe_s == pytest.approx(0.2), "a fifth of a plain step at least"
    assert StepCost(1, {1: 1.0, 3: 2.0}).probe_s == pytest.approx(0.5)
    unknown = StepCost(1)
    assert not unknown.is_known and unknown.plain_s == unknown.probe_s == 0.0


def test_sizes_never_measured_are_tried_in_turn() -> None:
    largest = [StepCost(1, {1: 1.0, nodes: 1.0}).most_nodes for nodes in (1, 3, 4, 20)]
    assert [StepCost(1).most_nodes, *largest] == [6, 6, 6, 8, 40]


# Outlook


def seen(bucket: tuple[str, int], *, times: int, hits: int) -> Calibration:
    calibration = Calibration(1.0, 0.95)
    for turn in range(times):
        calibration.observe(bucket, turn < hits)
    return calibration


def test_a_tree_promises_what_became_of_nodes_like_its_own() -> None:
    none = Calibration(1.0, 0.95)
    believed = Outlook.of(CHAIN, none, none)
    assert believed.tree.confidence == pytest.approx(CHAIN.confidence)
    assert believed.tokens == pytest.approx([1.0, 1.9, 1.9 + 0.45, 1.9 + 0.45 + 0.1125])
    bucket = believed.buckets[0]
    wrong = Outlook.of(CHAIN, seen(bucket, times=30, hits=0), none)
    assert wrong.tokens[1] < 1.2
    assert wrong.tree.confidence[2:] == believed.tree.confidence[2:], "others are none of it"
    assert Outlook.of(CHAIN, none, seen(bucket, times=30, hits=0)).tokens[1] < 1.2


def test_of_siblings_the_likelier_ones_leave_the_others_what_is_left() -> None:
    """Two drafters may be sure of different tokens."""
    for believed in ((0.9, 0.4), (0.4, 0.9)):
        tree = TokenTree((1, 2, 3), (-1, 0, 0), (1.0, *believed), ("", "a", "b"))
        found = Outlook.of(tree, Calibration(), Calibration()).tree.confidence[1:]
        assert found == pytest.approx([0.1 if rate == 0.4 else rate for rate in believed])


def test_what_is_cut_keeps_each_nodes_own_experience() -> None:
    r"""    0
         /  \
       a .2  b .8
             |
             c .9
    """
    tree = TokenTree((1, 2, 3, 4), (-1, 0, 0, 2), (1.0, 0.2, 0.8, 0.9), ("", "a", "b", "c"))
    none = Calibration(1.0, 0.95)
    outlook = Outlook.of(tree, none, none).best(2)
    assert outlook.tree.tokens == (1, 3, 4)
    assert [drafter for drafter, _ in outlook.buckets] == ["b", "c"]
    found = list(outlook.outcomes(Verdict((0, 1), (3, 9))))
    assert [(bucket[0], accepted) for bucket, accepted in found] == [("b", True), ("c", False)]
    assert [b[0] for b, _ in outlook.outcomes(Verdict((0,), (9,)))] == ["b"], "c was never asked"


# Whose the nodes are


def test_a_node_is_whose_who_was_first_to_propose_it() -> None:
    first = TokenTree.chain(1, [2, 3], [0.9, 0.9], "a")
    second = first.merge(TokenTree.chain(1, [2, 4], [0.9, 0.9], "b"))
    third = second.merge(TokenTree.chain(1, [5, 6], [0.9, 0.9], "c"))
    asked = [
        Ask(name, 0, tree, 0.0) for name, tree in zip("abc", (first, second, third), strict=True)
    ]
    owners = dict(zip(third.tokens, owners_of(third, asked), strict=True))
    assert owners == {1: "c", 2: "a", 3: "a", 4: "b", 5: "c", 6: "c"}


# FixedController


def test_fixed_scores_all_and_counts_drafted_nodes() -> None:
    paces = [Pace(), Pace()]
    step = FixedController().step(paces, 10)
    trees = [CHAIN, TokenTree.root(5)]
    assert step.cut(trees) == trees
    assert [dict(pace.budgets) for pace in paces] == [{3: 1}, {0: 1}]
    assert not step.lets_drafts_wait, "how long they take would choose what is scored"
