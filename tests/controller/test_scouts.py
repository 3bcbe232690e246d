"""Nodes that are scored to be learnt from: bounded by what may be lost, and kept as long as what
they bring pays."""

import pytest
from clocked import PLAIN_S, Simulated, World, measured

from mmspec.controller import AutoController, Controller, FixedController, Pace
from mmspec.state import Verdict
from mmspec.tree import TokenTree

SCOUTS = 40


def decode(
    controller: Controller, *, node_share: float, pays_after: int, num_tokens: int = 300
) -> tuple[float, int, Pace]:
    """Where a chain of three is right from the time on that so many scouts were scored: how many
    times as fast as plain decoding, scouts scored, and the pace."""
    world = World(controller, node_share=node_share)

    def says(draw: object, at: int) -> list[tuple[float, bool]]:
        return [(0.5, world.num_scouted >= pays_after)] * 3

    ratio, pace = world.decode({"looking": Simulated(says, 0.01, SCOUTS)}, num_tokens)
    return ratio, world.num_scouted, pace


@pytest.mark.parametrize("node_share", [0.002, 0.01, 0.05, 0.2])
def test_scouts_that_bring_nothing_cost_less_than_3_percent(node_share: float) -> None:
    ratio, scouted, pace = decode(AutoController(), node_share=node_share, pays_after=10**9)
    assert ratio >= 0.97, f"{ratio:.3f}x plain, {scouted} scouts: {pace}"


@pytest.mark.parametrize("node_share", [0.0005, 0.002, 0.004])
def test_scouts_that_pay_in_the_end_are_scored_until_then(node_share: float) -> None:
    ratio, scouted, _ = decode(
        AutoController(), node_share=node_share, pays_after=150, num_tokens=1000
    )
    fixed, _, _ = decode(FixedController(), node_share=node_share, pays_after=150, num_tokens=1000)
    assert scouted > 150 and ratio > 0.85 * fixed > 2.0, f"{ratio:.2f}x, fixed {fixed:.2f}x"


def test_what_was_never_measured_is_tried_in_turn() -> None:
    controller = measured(1)
    tree = Simulated(lambda draw, at: [], 0.0, SCOUTS).tree("looking", 1, [], 100)
    scored = list[int]()
    for _ in range(10):
        step = controller.step([Pace()], 50)
        step.learn(0, "looking", TokenTree.root(1), tree, 0.01 * PLAIN_S)
        (cut,) = step.cut([tree])
        step.observe([Verdict((0,), (1,))], PLAIN_S)
        scored.append(len(cut.scouts))
    assert scored == sorted(scored) and scored[0] == 2 and scored[-1] == SCOUTS
    sure = TokenTree.chain(1, range(2, 2 + SCOUTS), [0.99] * SCOUTS, "sure")
    assert measured(1).step([Pace()], 50).cut([sure])[0].num_nodes == 7


@pytest.mark.parametrize(("node_share", "most"), [(0.6, 0), (0.4, 1), (0.24, 2), (0.11, 4)])
def test_scouts_may_cost_half_of_what_may_be_lost(node_share: float, most: int) -> None:
    """At first that is one plain step. Those that nothing is left for promise nothing either."""
    pace, controller = Pace(), measured(1, 2 * SCOUTS, node_share=node_share)
    tree = Simulated(lambda draw, at: [], 0.0, SCOUTS).tree("looking", 1, [], 100)
    step = controller.step([pace], 50)
    step.learn(0, "looking", TokenTree.root(1), tree, 0.01 * PLAIN_S)
    assert step.cut([tree])[0].num_nodes == 1 + most
    worth = pace.worth.at("looking", 0)
    assert worth is not None and (worth > 0.0) == (most > 0)


def test_a_node_beside_scouts_is_weighed_by_what_it_adds_to_them() -> None:
    """They are scored anyway."""
    simulated = Simulated(lambda draw, at: [], 0.0, scouts=8)
    tree = simulated.tree("looking", 1, [(0.3, True)], 100)
    step = measured(1, 13).step([Pace()], 50)
    step.learn(0, "looking", TokenTree.root(1), tree, 0.01 * PLAIN_S)
    (cut,) = step.cut([tree])
    assert len(cut.scouts) == 8 and cut.num_nodes == 10
