"""Nodes that are scored to be learnt from: bounded by what may be lost, and kept as long as what
they bring pays."""

import pytest

from mmspec.controller import AutoController, FixedController, Pace
from mmspec.controller.interface import Controller
from mmspec.state import Verdict
from mmspec.tree import TokenTree

PLAIN_S, DRAFT_S, CHAIN, SCOUTS = 0.010, 0.0001, 3, 40


def decode(
    controller: Controller, *, node_share: float, pays_after: int, num_tokens: int = 300
) -> tuple[float, int, Pace]:
    """Against plain decoding, where a node costs `node_share` of a plain step and a chain of three
    is right from the time on that so many scouts were scored: how many times as fast, scouts
    scored, and the pace."""
    pace, tokens, scouted, clock = Pace(), 0, 0, 0.0
    while tokens < num_tokens:
        step = controller.step([pace], 100 + tokens)
        root, asked_s = TokenTree.root(1), 0.0
        tree = root
        if step.asks(0, "looking", root):
            drafted = TokenTree.chain(1, range(2, 2 + CHAIN), [0.5] * CHAIN, "looking")
            tree = drafted.merge(looking())
            asked_s = DRAFT_S
            step.learn(0, "looking", root, tree, DRAFT_S)
        (scored,) = step.cut([tree])
        scouted += len(scored.scouts)
        path = [0]
        if scouted >= pays_after:
            while (child := scored.child(path[-1], path[-1] + 2)) is not None and child <= CHAIN:
                path.append(child)
        seconds = PLAIN_S * (1 + node_share * (scored.num_nodes - 1))
        step.spent(asked_s)
        step.observe([Verdict(tuple(path), tuple(range(len(path))))], seconds)
        clock += seconds + asked_s
        tokens += len(path)
    return tokens * PLAIN_S / clock, scouted, pace


def looking() -> TokenTree:
    chain = TokenTree.chain(1, range(100, 100 + SCOUTS), [0.02] * SCOUTS, "looking")
    return TokenTree(
        chain.tokens,
        chain.parents,
        chain.confidence,
        chain.drafters,
        scouts=frozenset(range(1, SCOUTS + 1)),
    )


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
    controller = AutoController()
    for _ in range(3):
        controller.costs.observe_step(1, 1, 50, PLAIN_S)
    scored = list[int]()
    for _ in range(10):
        step = controller.step([Pace()], 50)
        step.learn(0, "looking", TokenTree.root(1), looking(), DRAFT_S)
        (tree,) = step.cut([looking()])
        step.observe([Verdict((0,), (1,))], PLAIN_S)
        scored.append(len(tree.scouts))
    assert scored == sorted(scored) and scored[0] == 2 and scored[-1] == SCOUTS
