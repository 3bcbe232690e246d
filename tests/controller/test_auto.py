"""The controller in a world with a clock of its own: never much slower than plain decoding, near
the best fixed budget where drafts pay, whatever the drafter is like."""

import random
from dataclasses import replace

import pytest
from clocked import PLAIN_S, Simulated, World, always, measured

from mmspec.controller import AutoController, FixedController, Pace
from mmspec.controller.preparing import Preparing
from mmspec.state import Preparation, Verdict
from mmspec.tree import TokenTree

# LAW: never slower

BAD = {
    "always wrong and sure of it": Simulated(always(16, 0.95, 0.0), 0.02),
    "seldom right": Simulated(always(16, 0.9, 0.05), 0.02),
    "dear and seldom right": Simulated(always(8, 0.8, 0.1), 0.4),
    "nothing to say, and slow in saying it": Simulated(always(0, 0.0, 0.0), 0.1),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_drafter_costs_less_than_3_percent_within_200_tokens(name: str, seed: int) -> None:
    ratio, pace = World(AutoController(), seed).decode({name: BAD[name]})
    assert ratio >= 0.97, f"{name}: {ratio:.3f}x plain, {pace}"


@pytest.mark.parametrize("name", BAD)
def test_one_known_to_be_bad_costs_a_quarter_of_a_step_and_half_a_percent(name: str) -> None:
    """Of each later request: what it is looked at for, in case that its text suits it."""
    world = World(AutoController())
    ratios = [world.decode({name: BAD[name]})[0] for _ in range(12)]
    lost = [200 / ratio - 200 for ratio in ratios[4:]]
    assert sum(lost) / len(lost) <= 0.25 + 0.005 * 200, lost


@pytest.mark.parametrize("hit", [0.0, 0.5])
def test_a_drafter_ten_times_slower_than_the_target_is_asked_once(hit: float) -> None:
    world = World(AutoController())
    slow = {"slow": Simulated(always(4, 0.9, hit), 10.0)}
    first, pace = world.decode(slow)
    assert pace.asked["slow"] == 1, "what it costs is known after it"
    assert first >= 0.94
    second, pace = world.decode(slow)
    assert second >= 0.97 and pace.asked["slow"] == 0


def test_a_good_drafter_whose_first_proposals_take_long_is_found_again() -> None:
    """As where kernels are compiled and graphs recorded."""
    world, says = World(AutoController()), always(8, 0.9, 0.9)
    _, pace = world.decode({"compiled": Simulated(says, 40.0)})
    assert pace.asked["compiled"] == 1
    for _ in range(20):
        ratio, pace = world.decode({"compiled": Simulated(says, 0.02)})
    assert ratio > 2.0, f"{ratio:.2f}x: {pace}"


def test_a_bad_drafter_is_still_probed_and_found_when_it_turns_good() -> None:
    def turning(draw: random.Random, at: int) -> list[tuple[float, bool]]:
        return [(0.9, at > 300 and draw.random() < 0.95) for _ in range(8)]

    ratio, pace = World(AutoController()).decode({"turning": Simulated(turning, 0.02)}, 900)
    assert ratio > 1.5, f"{ratio:.2f}x: {pace}"


# LAW: near the best

GOOD = {
    "copies": Simulated(always(16, 0.9, 0.95), 0.02),
    "half right": Simulated(always(8, 0.6, 0.6), 0.02),
    "a draft model": Simulated(always(5, 0.8, 0.8), 0.4),
    "modest": Simulated(always(12, 0.1, 0.9), 0.02),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_drafter_is_used_nearly_as_well_as_by_the_best_fixed_length(name: str) -> None:
    good, best = GOOD[name], 0.0
    for length in range(1, 17):
        cut = replace(good, says=lambda draw, at, n=length: good.says(draw, at)[:n])
        fixed, _ = World(FixedController()).decode({name: cut}, 2000)
        best = max(best, fixed)
    ratio, _ = World(AutoController()).decode({name: good}, 2000)
    assert ratio >= 0.93 * best, f"{ratio:.2f}x, the best fixed length {best:.2f}x"


def test_a_dear_drafter_is_left_alone_where_a_cheap_one_does_it_all() -> None:
    both = {
        "cheap": Simulated(always(16, 0.95, 0.97), 0.02),
        "dear": Simulated(always(4, 0.9, 0.0), 2.0),
    }
    ratio, pace = World(AutoController()).decode(both, 2000)
    alone, _ = World(AutoController()).decode({"cheap": both["cheap"]}, 2000)
    assert pace.asked["dear"] < 0.05 * pace.asked["cheap"]
    assert ratio > 0.9 * alone


# LAW: what it takes before a first draft


def prepared(hit: float, steps: float, *, said: float | None = None) -> dict[str, Simulated]:
    """One that takes `steps` for its preparation, and says that it takes `said`."""
    first = Preparation(steps=steps if said is None else said)
    return {"one": Simulated(always(8, 0.9, hit), 0.02, first=first, first_steps=steps)}


def test_what_cannot_pay_in_the_tokens_left_is_not_prepared() -> None:
    world = World(AutoController())
    for _ in range(3):
        world.decode(prepared(0.9, 1.0), 400)  # it is known to be good
    _, pace = world.decode(prepared(0.9, 20.0), 16)
    assert not pace.prepared_s and not pace.asked
    assert pace.choices.unprepared_s["one"] == pytest.approx(20 * PLAIN_S, rel=0.2)
    _, pace = world.decode(prepared(0.9, 20.0), 400)
    assert pace.prepared_s == {"one": 20 * PLAIN_S} and pace.asked["one"] > 20


def test_a_text_that_may_get_long_but_never_does_is_not_prepared_for() -> None:
    world = World(AutoController())
    for request in range(5):
        ratio, pace = world.decode(prepared(0.9, 10.0), 20, room=2000)
        assert not pace.prepared_s, f"request {request}: {ratio:.2f}x"


def test_before_any_text_has_ended_one_is_prepared_for_that_has_become_long() -> None:
    _, pace = World(AutoController()).decode(prepared(0.9, 20.0), 1000)
    assert 0 < pace.asked["one"] < 0.9 * sum(pace.budgets.values())


def test_a_preparation_that_never_pays_costs_a_fraction_of_all_time() -> None:
    world, ratios = World(AutoController()), list[float]()
    for _ in range(40):
        ratio, _ = world.decode(prepared(0.0, 10.0), 200)
        ratios.append(1 / ratio)
    total = sum(ratios) / len(ratios)
    assert total < 1.03, f"{total:.3f} of the plain time"
    assert min(1 / r for r in ratios) > 0.9


@pytest.mark.parametrize("steps", [0.0, 0.5])
def test_what_preparing_takes_is_measured_whatever_the_drafter_says(steps: float) -> None:
    """It says half a step, or nothing, and takes thirty, of which forty tokens save it less."""
    world, done = World(AutoController()), list[bool]()
    for _ in range(20):
        _, pace = world.decode(prepared(0.9, 30.0, said=steps), 40)
        done.append(bool(pace.prepared_s))
    assert done[0] and sum(done) <= 2, done


def test_who_may_not_be_prepared_is_weighed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a token brings to the text changes little of it."""
    weighed, is_worth = list[str](), Preparing.is_worth

    def counted(preparing: Preparing, pace: Pace, drafter: str, due: Preparation) -> bool:
        weighed.append(drafter)
        return is_worth(preparing, pace, drafter, due)

    monkeypatch.setattr(Preparing, "is_worth", counted)
    ratio, pace = World(AutoController()).decode(prepared(0.0, 50.0), 400)
    assert ratio > 0.99 and not pace.prepared_s
    assert 0 < len(weighed) < 400 / 3


def test_a_good_drafter_is_prepared_for_every_request_once_it_has_shown_it() -> None:
    world, paces = World(AutoController()), list[Pace]()
    for _ in range(6):
        ratio, pace = world.decode(prepared(0.9, 15.0), 300)
        paces.append(pace)
    assert all(pace.prepared_s for pace in paces[1:]) and ratio > 1.8, ratio


def test_who_pins_speculation_pays_for_it_alone() -> None:
    controller = measured(1)
    dear = Preparation(steps=1000.0)
    for speculate in ("auto", True):
        step = controller.step([Pace(speculate=speculate, room=9)], 50)  # type: ignore[arg-type]
        assert step.prepares(0, "any", dear) == (speculate is True)
    before = controller.outlays["any"].balance_s
    step.prepared(0, "any", dear, 10.0)
    step.cut([TokenTree.root(1)])
    step.observe([Verdict((0,), (1,))], PLAIN_S)
    assert controller.outlays["any"].balance_s == before


def test_the_rows_of_a_batch_are_prepared_as_the_first_ones_pay() -> None:
    """Each would be, alone; what they cost together is more than may be lost."""
    controller = AutoController()
    for _ in range(3):
        controller.costs.observe_step(8, 1, 50, PLAIN_S)
    paces = [Pace(room=2000, num_tokens=1000) for _ in range(8)]
    step, due = controller.step(paces, 50), Preparation(steps=6.0)
    done = 0
    for row in range(8):
        if step.prepares(row, "any", due):
            step.prepared(row, "any", due, 6 * PLAIN_S)
            done += 1
    assert 1 <= done < 8
    outlay = controller.outlays["any"]
    outlay.saved(100 * PLAIN_S, 100, PLAIN_S / 8)
    assert step.prepares(7, "any", due)


def test_work_that_can_wait_is_paid_from_what_was_saved() -> None:
    controller = measured(1)
    step, trial = controller.step([Pace()], 50), Preparation(steps=1.0, can_wait=True)
    done = 0
    assert step.asks(0, "searching", TokenTree.root(1))
    while step.prepares(0, "searching", trial) and done < 100:
        step.prepared(0, "searching", trial, PLAIN_S)
        done += 1
    assert 1 < done < 20, "an engine's first ones, then none before the drafter has saved something"
    step.observe([Verdict((0,), (2,))], PLAIN_S)
    assert not step.sleeps(0), "it is asked all the same"


# LAW: choices


def test_the_first_step_is_plain_so_that_there_is_something_to_compare_with() -> None:
    pace = Pace()
    step = AutoController().step([pace], 10)
    assert not step.asks(0, "any", TokenTree.root(1))
    assert step.cut([TokenTree.chain(1, [2], [0.9], "any")])[0].num_nodes == 1
    beside_pinned = AutoController().step([Pace(), Pace(speculate=True)], 10)
    asked = [beside_pinned.asks(row, "any", TokenTree.root(1)) for row in (0, 1)]
    assert asked == [False, True]


@pytest.mark.parametrize(("rows", "context"), [(1, 50), (2, 50), (1, 64)])
def test_so_is_the_first_one_of_a_size(rows: int, context: int) -> None:
    step = measured(1).step([Pace() for _ in range(rows)], context)
    assert step.asks(0, "any", TokenTree.root(1)) == ((rows, context) == (1, 50))


def test_a_plain_step_is_measured_again_after_256_with_trees() -> None:
    world = World(controller := AutoController())
    _, pace = world.decode({"good": Simulated(always(1, 0.95, 1.0), 0.01)}, 27)
    assert controller.since_plain == pace.budgets[1] > 10, "all steps but the first few had trees"
    assert pace.choices.plain_step_s == pytest.approx(PLAIN_S)
    steps = sum(pace.budgets.values())
    assert pace.choices.expected_tokens_per_step == pytest.approx(27 / steps, rel=0.05)
    asked = []
    for steps in (255, 256):
        controller.since_plain = steps
        asked.append(controller.step([Pace()], 100).asks(0, "new", TokenTree.root(1)))
    assert asked == [True, False]
    world.decode({}, 2)
    assert controller.since_plain == 0


def test_what_an_ask_took_is_booked_where_the_step_itself_took_no_time() -> None:
    """As of one that was begun early, and had ended before the drafter had."""
    controller, pace, root = measured(1), Pace(room=100), TokenTree.root(1)
    step = controller.step([pace], 50)
    assert step.asks(0, "dear", root)
    step.learn(0, "dear", root, root, 1.5 * PLAIN_S)
    step.cut([root])
    step.spent(2 * PLAIN_S)  # with what it took to weigh the tree
    step.observe([Verdict((0,), (2,))], 0.0)
    assert pace.accounts["dear"].balance_s == pytest.approx(-PLAIN_S)
    assert pace.recent_s == 2 * PLAIN_S


def test_pinned_speculation_is_always_asked_and_never_cut() -> None:
    pace = Pace(speculate=True)
    step = AutoController().step([pace], 10)
    assert step.asks(0, "any", TokenTree.root(1))
    assert step.cut([TokenTree.chain(1, [2, 3], [0.1, 0.1], "any")])[0].num_nodes == 3
    waits = [AutoController().step([one], 10).lets_drafts_wait for one in (pace, Pace())]
    assert waits == [False, True]


def test_a_row_is_drafted_for_beside_a_pinned_one() -> None:
    """No step of such a batch is plain, so there is no plain one to wait for."""
    controller, asked = measured(1), 0
    paces = [Pace(), Pace(speculate=True)]
    for _ in range(400):
        step = controller.step(paces, 50)
        trees = [TokenTree.root(1), TokenTree.chain(1, [2, 3], [0.9, 0.9], "any")]
        if step.asks(0, "any", trees[0]):
            asked += 1
            trees[0] = trees[1]
            step.learn(0, "any", TokenTree.root(1), trees[0], 1e-4)
        scored = step.cut(trees)
        step.spent(1e-4 * (trees[0].num_nodes > 1))
        step.observe([Verdict(tuple(range(tree.num_nodes)), (2, 3, 4)) for tree in scored], 0.012)
    assert asked > 390


def test_a_pinned_rows_nodes_make_a_neighbours_nodes_free() -> None:
    controller = measured(1, 9, rows=2, node_share=1.0)
    weak = TokenTree.chain(1, range(2, 10), [0.3] * 8, "any")
    pinned = TokenTree.chain(1, range(2, 8), [0.5] * 6, "any")
    for speculate, scored in ((True, 7), ("auto", 1)):
        step = controller.step([Pace(), Pace(speculate=speculate)], 50)  # type: ignore[arg-type]
        trees = step.cut([weak, pinned])
        assert trees[0].num_nodes == scored, f"beside {speculate}"
