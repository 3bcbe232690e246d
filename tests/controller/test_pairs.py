"""Several drafters in a world with a clock of its own: at least about as good as the better one,
and about plain decoding where none of them is ever right."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mmspec.controller import AutoController, Pace, auto_row
from mmspec.controller.account import Account
from mmspec.controller.auto_row import AutoRow
from mmspec.state import Verdict
from mmspec.tree import TokenTree

PLAIN_S = 0.002
Says = Callable[[random.Random, int], list[tuple[float, bool]]]
# (random, place in the text) -> of each node of a chain what is believed of it, and if it is right


@dataclass(frozen=True)
class Simulated:
    """A drafter that takes so many plain steps to propose."""

    says: Says
    steps: float


def step_s(nodes: int) -> float:
    """As the bundled model's: 20 nodes beside node 0 cost a plain step and a half."""
    return PLAIN_S * (1 + 0.075 * (nodes - 1))


def decode(
    controller: AutoController,
    drafters: dict[str, Simulated],
    num_tokens: int,
    *,
    seed: int,
    overlaps: bool = False,
) -> tuple[float, Pace]:
    """Plain decoding's time over the request's, and its pace. A token is its place in the text
    where it is right, and another one of each drafter's own where it is wrong. With `overlaps` a
    step is begun where nothing was to be scored of the one before."""
    draw, pace, is_begun = random.Random(seed), Pace(), False
    at, clock = 0, 0.0
    wrong = {name: 10**6 * (n + 1) for n, name in enumerate(drafters)}
    while at < num_tokens:
        pace.room = num_tokens - at
        step = controller.step([pace], 100 + at)
        tree, spent = TokenTree.root(at), 0.0
        said = {name: one.says(draw, at) for name, one in drafters.items()}  # asked or not
        for name in step.order(list(drafters)):
            if not step.asks(0, name, tree):
                continue
            tokens = [
                at + depth if is_right else wrong[name] + at + depth
                for depth, (_, is_right) in enumerate(said[name], start=1)
            ]
            chain = TokenTree.chain(at, tokens, [believed for believed, _ in said[name]], name)
            before, tree = tree, tree.merge(chain)
            seconds = drafters[name].steps * PLAIN_S
            spent += seconds
            step.learn(0, name, before, tree, seconds)
        tree = tree.prune(64)
        is_late = is_begun and step.drop([tree])
        (scored,) = step.cut([TokenTree.root(at) if is_begun else tree])
        path = [0]
        while (child := scored.child(path[-1], at + len(path))) is not None:
            path.append(child)
        seconds = step_s(scored.num_nodes)
        if is_begun:  # while they were asked
            seconds = max(seconds - spent, 0.0)
        is_begun = overlaps and not is_late and scored.num_nodes == 1
        step.spent(spent)
        step.observe([Verdict(tuple(path), tuple(range(at + 1, at + 1 + len(path))))], seconds)
        clock += spent + seconds
        at += len(path)
    return at * PLAIN_S / clock, pace


def always(length: int, believed: float, hit: float) -> Says:
    return lambda draw, at: [(believed, draw.random() < hit) for _ in range(length)]


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
    ratios = list[float]()
    controller = AutoController()
    for request in range(6):
        ratio, _ = decode(controller, drafters, num_tokens, seed=request)
        ratios.append(ratio)
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
    controller = AutoController()
    for request in range(3):
        ratio, pace = decode(controller, WRONG, 400, seed=10 * seed + request)
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
    _, pace = decode(AutoController(), silent, 200, seed=0)
    assert pace.asked["silent"] > 50, pace.asked


def test_what_another_has_proposed_before_saves_nothing_again() -> None:
    controller = AutoController()
    same = always(6, 0.9, 1.0)
    both = {"cheap": Simulated(same, 0.05), "dear": Simulated(same, 0.3)}
    for request in range(3):
        _, pace = decode(controller, both, 200, seed=request)
    assert pace.asked["dear"] <= 0.1 * pace.asked["cheap"], pace.asked


def test_who_saves_most_alone_is_asked_first() -> None:
    """The other one then shows what it adds."""
    controller, pair = AutoController(), {"guesses": GUESSES, "heads": HEADS}
    for name, one in pair.items():
        decode(controller, {name: one}, 400, seed=1)
    assert controller.step([Pace()], 500).order(list(pair)) == ["heads", "guesses"]
    _, pace = decode(controller, pair, 400, seed=2)
    assert pace.asked["guesses"] < 0.5 * pace.asked["heads"], pace.asked


def test_of_two_tokens_one_is_chosen() -> None:
    """Both drafters are sure, of different ones: a tree of both promises no more than one token at
    each depth."""
    controller = AutoController()
    for nodes in (1, 1, 9, 9):
        controller.costs.observe_step(1, nodes, 50, step_s(nodes))
    step = controller.step([Pace()], 50)
    first = TokenTree.chain(1, [2, 3, 4, 5], [0.97] * 4, "one")
    both = first.merge(TokenTree.chain(1, [6, 7, 8, 9], [0.95] * 4, "other"))
    step.learn(0, "one", TokenTree.root(1), first, 0.0)
    step.learn(0, "other", first, both, 0.0)
    worth = controller.worth.at("other", 3)
    assert worth is not None and worth < 0.1 * PLAIN_S, worth


def test_a_node_may_bear_another_name_than_who_was_asked() -> None:
    """As a drafter's does that wraps another one."""
    controller = AutoController()
    for nodes in (1, 1, 5, 5):
        controller.costs.observe_step(1, nodes, 50, step_s(nodes))
    pace = Pace()
    step, inner = controller.step([pace], 50), TokenTree.chain(1, [2, 3], [0.9, 0.9], "inner")
    step.learn(0, "outer", TokenTree.root(1), inner, 0.0)
    (scored,) = step.cut([inner])
    step.observe([Verdict((0, 1, 2), (2, 3, 4))], step_s(scored.num_nodes))
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
        controller = AutoController()
        paces = [decode(controller, drafters, 200, seed=seed)[1] for seed in range(4)]
        asked[longest] = [sum(pace.asked.values()) for pace in paces]
    sleeping, waking = asked.values()
    assert sleeping == pytest.approx(waking, abs=1)


def test_while_nobody_may_be_asked_nobody_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed, wait_s = list[str](), AutoRow._wait_s

    def counted(row: AutoRow, drafter: str, tree: TokenTree, least_s: float | None) -> float:
        weighed.append(drafter)
        return wait_s(row, drafter, tree, least_s)

    monkeypatch.setattr(AutoRow, "_wait_s", counted)
    controller = AutoController()
    for seed in range(3):
        weighed.clear()
        _, pace = decode(controller, WRONG, 400, seed=seed)
    assert set(weighed) == {"cheap", "dear"}, "each is found again when the text changes"
    assert len(weighed) < 400 / 3, f"in 400 steps, {sum(pace.asked.values())} of them asked"


@pytest.mark.parametrize("steps", [0.02, 0.1, 0.3])
def test_who_pays_late_is_found_out_where_steps_overlap(steps: float) -> None:
    """A drafter that was wrong for long is asked now and then: also in a step under way, where
    what it says comes too late."""
    late = Simulated(lambda draw, at: [(0.5, at >= 400)] * 8, steps)
    controller = AutoController()
    for request in range(2):
        ratio, _ = decode(controller, {"late": late}, 1200, seed=request, overlaps=True)
        assert ratio > 1.8


def test_one_that_may_be_looked_at_but_is_not_prepared_holds_no_other_back() -> None:
    """Beside one that is paused a single node is scored, if it was asked indeed."""
    controller = AutoController()
    for nodes in (1, 1, 5, 5):
        controller.costs.observe_step(1, nodes, 50, step_s(nodes))
    controller.costs.observe_draft("paused", 1e-4)
    pace = Pace(accounts={"paused": Account(balance_s=0.0, probe_s=PLAIN_S)})
    step, root = controller.step([pace], 50), TokenTree.root(1)
    assert step.asks(0, "paused", root)
    good = TokenTree.chain(1, [2, 3, 4], [0.95] * 3, "good")
    assert step.asks(0, "good", root)
    step.learn(0, "good", root, good, 0.0)
    assert step.cut([good])[0].num_nodes == 4
