"""The controller in a world with a clock of its own: never much slower than plain decoding, near
the best fixed budget where drafts pay, whatever the drafter is like."""

import random
from collections.abc import Callable

import pytest

from mmspec.controller import AutoController, Controller, FixedController, Pace
from mmspec.state import Verdict
from mmspec.tree import TokenTree

PLAIN_S = 0.010
Draft = Callable[[random.Random, int], tuple[list[float], list[bool]]]
# (random, token index) -> a chain's confidences, and which of its nodes the target would choose


def step_s(nodes: int) -> float:
    """A score call: twice a plain one at 20 nodes."""
    return PLAIN_S * (1 + 0.05 * (nodes - 1))


class World:
    """Decodes one request after another with simulated drafters."""

    def __init__(self, controller: Controller, seed: int = 0) -> None:
        self.controller = controller
        self.random = random.Random(seed)

    def decode(
        self, drafters: dict[str, tuple[Draft, float]], num_tokens: int = 200
    ) -> tuple[float, Pace]:
        """Seconds that `num_tokens` took, against plain decoding, and the request's pace."""
        pace, tokens, clock = Pace(), 0, 0.0
        while tokens < num_tokens:
            step = self.controller.step([pace], 100 + tokens)
            tree, right, asked_s = TokenTree.root(1), {0: True}, list[float]()
            for name, (draft, draft_s) in drafters.items():
                if not step.asks(0, name, tree):
                    continue
                confidence, hits = draft(self.random, tokens)
                chain = TokenTree.chain(1, range(2, 2 + len(hits)), confidence, name)
                merged = tree.merge(chain)
                clock += draft_s
                asked_s.append(draft_s)
                step.learn(0, name, tree, merged, draft_s)
                right |= {merged.path_to(node)[-1]: hit for node, hit in enumerate(hits, start=1)}
                tree = merged
            (scored,) = step.cut([tree])
            path = [0]
            while (child := scored.child(path[-1], path[-1] + 2)) and right[child]:
                path.append(child)
            seconds = step_s(scored.num_nodes)
            clock += seconds
            verdict = Verdict(tuple(path), tuple(range(len(path))))
            step.spent(sum(asked_s))
            step.observe([verdict], seconds)
            tokens += len(path)
        return num_tokens * PLAIN_S / clock, pace


def chain_of(length: int, confidence: float, hit: float) -> Draft:
    """Claims `confidence` for each node; each is right with probability `hit`."""

    def draft(draw: random.Random, token: int) -> tuple[list[float], list[bool]]:
        return [confidence] * length, [draw.random() < hit for _ in range(length)]

    return draft


def nothing(draw: random.Random, token: int) -> tuple[list[float], list[bool]]:
    return [], []


# LAW: never slower

BAD = {
    "always wrong and sure of it": (chain_of(16, 0.95, 0.0), 0.0002),
    "seldom right": (chain_of(16, 0.9, 0.05), 0.0002),
    "dear and seldom right": (chain_of(8, 0.8, 0.1), 0.004),
    "nothing to say, and slow in saying it": (nothing, 0.001),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("seed", range(5))
def test_a_bad_drafter_costs_less_than_3_percent_within_200_tokens(name: str, seed: int) -> None:
    ratio, pace = World(AutoController(), seed).decode({name: BAD[name]})
    assert ratio >= 0.97, f"{name}: {ratio:.3f}x plain, {pace}"


@pytest.mark.parametrize("hit", [0.0, 0.5])
def test_a_drafter_ten_times_slower_than_the_target_is_asked_once(hit: float) -> None:
    world = World(AutoController())
    slow = {"slow": (chain_of(4, 0.9, hit), 10 * PLAIN_S)}
    first, pace = world.decode(slow)
    assert pace.asked["slow"] == 1, "what it costs is known after it"
    assert first >= 0.94
    second, pace = world.decode(slow)
    assert second >= 0.97 and pace.asked["slow"] == 0


def test_a_bad_drafter_is_still_probed_and_found_when_it_turns_good() -> None:
    def turning(draw: random.Random, token: int) -> tuple[list[float], list[bool]]:
        return [0.9] * 8, [token > 300 and draw.random() < 0.95 for _ in range(8)]

    world = World(AutoController())
    ratio, pace = world.decode({"turning": (turning, 0.0002)}, num_tokens=900)
    assert ratio > 1.5, f"{ratio:.2f}x: {pace}"


# LAW: near the best

GOOD = {
    "copies": (chain_of(16, 0.9, 0.95), 0.0002),
    "half right": (chain_of(8, 0.6, 0.6), 0.0002),
    "a draft model": (chain_of(5, 0.8, 0.8), 0.004),
    "modest": (chain_of(12, 0.1, 0.9), 0.0002),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_drafter_is_used_nearly_as_well_as_by_the_best_fixed_length(name: str) -> None:
    draft, draft_s = GOOD[name]
    best = 0.0
    for length in range(1, 17):

        def cut(draw: random.Random, token: int, n: int = length) -> tuple[list[float], list[bool]]:
            confidence, hits = draft(draw, token)
            return confidence[:n], hits[:n]

        fixed, _ = World(FixedController(), 1).decode({name: (cut, draft_s)}, 2000)
        best = max(best, fixed)
    ratio, _ = World(AutoController(), 1).decode({name: (draft, draft_s)}, 2000)
    assert ratio >= 0.93 * best, f"{ratio:.2f}x, the best fixed length {best:.2f}x"


def test_a_dear_drafter_is_left_alone_where_a_cheap_one_does_it_all() -> None:
    both = {
        "cheap": (chain_of(16, 0.95, 0.97), 0.0002),
        "dear": (chain_of(4, 0.9, 0.0), 0.02),
    }
    ratio, pace = World(AutoController()).decode(both, 2000)
    alone, _ = World(AutoController()).decode({"cheap": both["cheap"]}, 2000)
    assert pace.asked["dear"] < 0.05 * pace.asked["cheap"]
    assert ratio > 0.9 * alone


# LAW: choices


def test_the_first_step_is_plain_so_that_there_is_something_to_compare_with() -> None:
    pace = Pace()
    step = AutoController().step([pace], 10)
    assert not step.asks(0, "any", TokenTree.root(1))
    assert step.cut([TokenTree.chain(1, [2], [0.9], "any")])[0].num_nodes == 1


def test_pinned_speculation_is_always_asked_and_never_cut() -> None:
    pace = Pace(speculate=True)
    step = AutoController().step([pace], 10)
    assert step.asks(0, "any", TokenTree.root(1))
    assert step.cut([TokenTree.chain(1, [2, 3], [0.1, 0.1], "any")])[0].num_nodes == 3


def test_a_pinned_rows_nodes_make_a_neighbours_nodes_free() -> None:
    controller = AutoController()
    for nodes in (1, 8):  # eight nodes cost as much as ten plain steps
        for _ in range(3):
            controller.costs.observe_step(2, nodes, 50, 0.01 if nodes == 1 else 0.1)
    weak = TokenTree.chain(1, [2, 3], [0.3, 0.3], "any")
    pinned = TokenTree.chain(1, list(range(2, 9)), [0.5] * 7, "any")
    for speculate, scored in ((True, 3), ("auto", 1)):
        step = controller.step([Pace(), Pace(speculate=speculate)], 50)  # type: ignore[arg-type]
        trees = step.cut([weak, pinned])
        assert trees[0].num_nodes == scored, f"beside {speculate}"
