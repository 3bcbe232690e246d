"""Requests decoded by a clock of their own: simulated drafters, and steps of fixed costs."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mmspec.controller import AutoController, Controller, Pace
from mmspec.state import Preparation, Verdict
from mmspec.tree import TokenTree

PLAIN_S = 0.010
Says = Callable[[random.Random, int], list[tuple[float, bool]]]
# (random, place in the text) -> of each node of a chain what is believed of it, and if it is right


@dataclass(frozen=True)
class Simulated:
    """A drafter that takes so many plain steps to propose, after so many to prepare itself."""

    says: Says
    steps: float
    scouts: int = 0  # wrong ones, beside what it says
    first: Preparation | None = None
    first_steps: float = 0.0

    def tree(self, name: str, at: int, said: list[tuple[float, bool]], wrong: int) -> TokenTree:
        """A token is its place in the text where it is right, and `wrong` more where it is not."""
        chain = TokenTree.chain(
            at,
            [at + n + (0 if is_right else wrong) for n, (_, is_right) in enumerate(said, start=1)],
            [believed for believed, _ in said],
            name,
        )
        if not self.scouts:
            return chain
        beside = range(wrong + 10**5, wrong + 10**5 + self.scouts)
        window = TokenTree.chain(at, beside, [0.02] * self.scouts, name)
        return chain.merge(replace(window, scouts=frozenset(range(1, self.scouts + 1))))


def always(length: int, believed: float, hit: float) -> Says:
    """Each node is right with probability `hit`."""
    return lambda draw, at: [(believed, draw.random() < hit) for _ in range(length)]


def measured(*nodes: int, rows: int = 1, node_share: float = 0.05) -> AutoController:
    """One that has measured steps of these sizes, of so many requests."""
    controller = AutoController()
    for size in nodes * 2:  # the first of a size does not count
        controller.costs.observe_step(rows, size, 50, step_s(size, node_share))
    return controller


def step_s(nodes: int, node_share: float) -> float:
    """A score call, where a node costs `node_share` of a plain step."""
    return PLAIN_S * (1 + node_share * (nodes - 1))


class World:
    """Decodes one request after another under a controller."""

    def __init__(self, controller: Controller, seed: int = 0, *, node_share: float = 0.05) -> None:
        """One more node costs `node_share` of a plain step."""
        self.controller = controller
        self.node_share = node_share
        self.seed = seed
        self.num_requests = 0
        self.num_scouted = 0  # nodes, of all requests

    def decode(
        self,
        drafters: Mapping[str, Simulated],
        num_tokens: int = 200,
        *,
        room: int | None = None,
        overlaps: bool = False,
    ) -> tuple[float, Pace]:
        """Plain decoding's time over the request's, and its pace. The text ends at `num_tokens`,
        and has room for `room`. With `overlaps` a step is begun where nothing was to be scored of
        the one before."""
        draw = random.Random(1000 * self.seed + self.num_requests)
        self.num_requests += 1
        wrong = {name: 10**6 * number for number, name in enumerate(drafters, start=1)}
        ready = {name for name, one in drafters.items() if one.first is None}
        pace, at, clock, is_begun = Pace(), 0, 0.0, False
        while at < num_tokens:
            pace.room = (room or num_tokens) - at
            step = self.controller.step([pace], 100 + at)
            tree, spent = TokenTree.root(at), 0.0
            said = {name: one.says(draw, at) for name, one in drafters.items()}  # asked or not
            for name in () if step.sleeps(0) else step.order(list(drafters)):
                one = drafters[name]
                if not step.asks(0, name, tree):
                    continue
                if one.first is not None and name not in ready:
                    if not step.prepares(0, name, one.first):
                        continue
                    ready.add(name)
                    spent += one.first_steps * PLAIN_S
                    step.prepared(0, name, one.first, one.first_steps * PLAIN_S)
                proposed = one.tree(name, at, said[name], wrong[name])
                before, tree = tree, tree.merge(proposed)
                spent += one.steps * PLAIN_S
                step.learn(0, name, before, tree, one.steps * PLAIN_S)
            tree = tree.prune(64)
            is_late = is_begun and step.drop([tree])
            (scored,) = step.cut([TokenTree.root(at) if is_begun else tree])
            self.num_scouted += len(scored.scouts)
            path = [0]
            while (child := scored.child(path[-1], at + len(path))) is not None:
                path.append(child)
            seconds = step_s(scored.num_nodes, self.node_share)
            if is_begun:  # while they were asked
                seconds = max(seconds - spent, 0.0)
            is_begun = overlaps and not is_late and scored.num_nodes == 1
            step.spent(spent)
            step.observe([Verdict(tuple(path), tuple(range(at + 1, at + 1 + len(path))))], seconds)
            clock += spent + seconds
            at += len(path)
        pace.lengths.observe(at)
        return at * PLAIN_S / clock, pace
