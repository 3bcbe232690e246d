"""Several drafters in a world with a clock of its own: at least about as good as the better one,
and about plain decoding where none of them is ever right."""

import random

import pytest
from clocked import PLAIN_S, Simulated, World, always, measured

from mmspec.controller import AutoController, Pace, auto_row
from mmspec.controller.account import Account
from mmspec.controller.auto_row import AutoRow
from mmspec.state import Verdict
from mmspec.tree import TokenTree

NODE_SHARE = 0.075  # as the bundled model's: 20 nodes beside node 0 cost a plain step and a half


def world(seed: int = 0) -> World:
    return World(AutoController(), seed, node_share=NODE_SHARE)


def in_bursts(draw: random.Random, at: int) -> list[tuple[float, bool]]:
    """As one who copies: the second half of each 48 tokens can be copied; before that there is
    nothing to say, or a wrong guess."""
    if at % 48 >= 24:
        return [(0.9, True)] * (48 - at % 48)
    return [(0.3, False)] * draw.choice((1, 2, 12)) if draw.random() < 0.4 else []


COPIES = Simulated(always(16, 0.95, 0.97), 0.06)
BURSTS = Simulated(in_bursts, 0.03)
GUESSES = Simulated(always(2, 0.3, 0.2), 0.06)
HEADS = Simulated(always(8, 0.9, 0.9), 0.5)
POOR_HEADS = Simulated(always(4, 0.3, 0.3), 0.5)
FAIR_HEADS = Simulated(always(4, 0.6, 0.6), 0.3)
SURE_AND_WRONG = Simulated(always(8, 0.95, 0.0), 0.3)
WRONG = {
    "cheap": Simulated(always(3, 0.6, 0.0), 0.06),
    "dear": Simulated(always(8, 0.9, 0.0), 0.5),
}
PAIRS = {
    "copies, and heads that do less": (COPIES, FAIR_HEADS),
    "copies, and heads that do nothing": (COPIES, SURE_AND_WRONG),
    "copies in bursts, and poor heads": (BURSTS, POOR_HEADS),
    "copies in bursts, and fair heads": (BURSTS, FAIR_HEADS),
    "guesses, and good heads": (GUESSES, HEADS),
}


def mean_ratio(drafters: dict[str, Simulated], *, num_tokens: int = 200) -> float:
    """Of requests of one engine behind its first two."""
    own = world()
    ratios = [own.decode(drafters, num_tokens)[0] for _ in range(6)]
    return len(ratios[2:]) / sum(1 / ratio for ratio in ratios[2:])


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_two_are_at_least_nearly_as_good_as_the_better_one(name: str, is_turned: bool) -> None:
    cheap, dear = PAIRS[name]
    alone = {"cheap": mean_ratio({"cheap": cheap}), "dear": mean_ratio({"dear": dear})}
    both = {"dear": dear, "cheap": cheap} if is_turned else {"cheap": cheap, "dear": dear}
    ratio = mean_ratio(both)
    assert ratio >= 0.95 * max(1.0, *alone.values()), f"{ratio:.3f}x plain, alone {alone}"


@pytest.mark.parametrize("seed", range(3))
def test_two_that_are_never_right_cost_less_than_2_percent_within_400_tokens(seed: int) -> None:
    own = world(seed)
    for _ in range(3):
        ratio, pace = own.decode(WRONG, 400)
    assert ratio >= 0.98, f"{ratio:.4f}x plain: {pace.choices}"


@pytest.mark.parametrize("num_tokens", [48, 200])
def test_one_that_copies_in_bursts_is_asked_between_them(num_tokens: int) -> None:
    """It has saved many steps and costs a thirtieth of one: looking for the next burst is paid
    from what the last one has saved."""
    ratio = mean_ratio({"bursts": BURSTS}, num_tokens=num_tokens)
    assert ratio > 1.6, f"{ratio:.3f}x plain"


def test_looking_and_finding_nothing_costs_no_more_than_it_takes() -> None:
    """No node is scored where nothing is proposed, so none is charged for."""
    silent = {"silent": Simulated(lambda draw, at: [], 0.01)}
    _, pace = world().decode(silent)
    assert pace.asked["silent"] > 50, pace.asked


def test_what_another_has_proposed_before_saves_nothing_again() -> None:
    own, same = world(), always(6, 0.9, 1.0)
    both = {"cheap": Simulated(same, 0.05), "dear": Simulated(same, 0.3)}
    for _ in range(3):
        _, pace = own.decode(both)
    assert pace.asked["dear"] <= 0.1 * pace.asked["cheap"], pace.asked


def test_who_saves_most_alone_is_asked_first() -> None:
    """The other one then shows what it adds."""
    own, pair = world(), {"guesses": GUESSES, "heads": HEADS}
    for name, one in pair.items():
        own.decode({name: one}, 400)
    assert own.controller.step([Pace()], 500).order(list(pair)) == ["heads", "guesses"]
    _, pace = own.decode(pair, 400)
    assert pace.asked["guesses"] < 0.5 * pace.asked["heads"], pace.asked


def test_of_two_tokens_one_is_chosen() -> None:
    """Both drafters are sure, of different ones: a tree of both promises no more than one token at
    each depth."""
    controller = measured(1, 9)
    step = controller.step([Pace()], 50)
    first = TokenTree.chain(1, [2, 3, 4, 5], [0.97] * 4, "one")
    both = first.merge(TokenTree.chain(1, [6, 7, 8, 9], [0.95] * 4, "other"))
    step.learn(0, "one", TokenTree.root(1), first, 0.0)
    step.learn(0, "other", first, both, 0.0)
    worth = controller.worth.at("other", 3)
    assert worth is not None and worth < 0.1 * PLAIN_S, worth


def test_a_node_may_bear_another_name_than_who_was_asked() -> None:
    """As a drafter's does that wraps another one."""
    controller = measured(1, 5)
    pace = Pace()
    step, inner = controller.step([pace], 50), TokenTree.chain(1, [2, 3], [0.9, 0.9], "inner")
    step.learn(0, "outer", TokenTree.root(1), inner, 0.0)
    step.cut([inner])
    step.observe([Verdict((0, 1, 2), (2, 3, 4))], PLAIN_S)
    assert pace.accounts["outer"].beside(0).saved_s > 0.0 and "inner" not in pace.accounts


@pytest.mark.parametrize("pair", [*PAIRS.values(), tuple(WRONG.values())])
def test_what_is_slept_through_changes_no_decision(
    pair: tuple[Simulated, Simulated], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is weighed while nobody could be asked: it comes to the same, but for rounding."""
    drafters = dict(zip(("cheap", "dear"), pair, strict=True))
    asked = dict[float, list[int]]()
    for longest in (auto_row._LONGEST_SLEEP, 0.0):
        monkeypatch.setattr(auto_row, "_LONGEST_SLEEP", longest)
        own = world()
        paces = [own.decode(drafters)[1] for _ in range(4)]
        asked[longest] = [sum(pace.asked.values()) for pace in paces]
    sleeping, waking = asked.values()
    assert sleeping == pytest.approx(waking, abs=1)


def test_while_nobody_may_be_asked_nobody_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed, wait_s = list[str](), AutoRow._wait_s

    def counted(row: AutoRow, drafter: str, tree: TokenTree, least_s: float | None) -> float:
        weighed.append(drafter)
        return wait_s(row, drafter, tree, least_s)

    monkeypatch.setattr(AutoRow, "_wait_s", counted)
    own = world()
    for _ in range(3):
        weighed.clear()
        _, pace = own.decode(WRONG, 400)
    assert set(weighed) == {"cheap", "dear"}, "each is found again when the text changes"
    assert len(weighed) < 400 / 3, f"in 400 steps, {sum(pace.asked.values())} of them asked"


@pytest.mark.parametrize("steps", [0.02, 0.1, 0.3])
def test_who_pays_late_is_found_out_where_steps_overlap(steps: float) -> None:
    """A drafter that was wrong for long is asked now and then: also in a step under way, where
    what it says comes too late."""
    late = Simulated(lambda draw, at: [(0.5, at >= 400)] * 8, steps)
    own = world()
    for _ in range(2):
        ratio, _ = own.decode({"late": late}, 1200, overlaps=True)
        assert ratio > 1.8


def test_one_that_may_be_looked_at_but_is_not_prepared_holds_no_other_back() -> None:
    """Beside one that is paused a single node is scored, if it was asked indeed."""
    controller = measured(1, 5)
    controller.costs.observe_draft("paused", 1e-4)
    pace = Pace(accounts={"paused": Account(balance_s=0.0, probe_s=PLAIN_S)})
    step, root = controller.step([pace], 50), TokenTree.root(1)
    assert step.asks(0, "paused", root)
    good = TokenTree.chain(1, [2, 3, 4], [0.95] * 3, "good")
    assert step.asks(0, "good", root)
    step.learn(0, "good", root, good, 0.0)
    assert step.cut([good])[0].num_nodes == 4
