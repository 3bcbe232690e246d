"""Proposals: the likeliest nodes are found, and what the target chose teaches of all on its way."""

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mmspec.calibration import Calibration
from mmspec.drafters.proposal import Choice, Proposal, ProposalBuilder, first_rate
from mmspec.drafters.walked import held_path, walked
from mmspec.tree import TokenTree


@dataclass(frozen=True)
class World:
    """What may follow a path: tokens 0, 1, ... with these rates."""

    rates: dict[tuple[int, ...], tuple[float, ...]]

    def below(self, path: tuple[int, ...]) -> list[Choice[tuple[int, ...]]]:
        choices = [
            Choice(token, rate, (*path, token), (*path, token))
            for token, rate in enumerate(self.rates.get(path, ()))
        ]
        return sorted(choices, key=lambda choice: -choice.rate)

    def paths(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Each path, and how likely all of it is accepted."""
        waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        for path, likely in waiting:
            waiting += [(one.place, likely * one.rate) for one in self.below(path)]
            if path:
                yield path, likely


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Few rates, so that many paths are equally likely."""
    rates: dict[tuple[int, ...], tuple[float, ...]] = {}
    paths: list[tuple[int, ...]] = [()]
    for path in paths:
        if len(path) < 3:
            own = draw(st.lists(st.sampled_from([0.25, 0.5, 0.75]), max_size=3))
            rates[path] = tuple(own)
            paths += [(*path, token) for token in range(len(own))]
    return World(rates)


def grown(world: World, budget: int, least: float) -> tuple[Proposal, list[tuple[int, ...]]]:
    nodes = ProposalBuilder(7, "test")
    places = nodes.add_likeliest((), world.below, budget=budget, min_confidence=least)
    assert len(nodes) == len(places)
    return nodes.built(), places


@given(worlds(), st.integers(0, 12), st.sampled_from([0.0, 0.125, 0.3]))
def test_the_likeliest_nodes_of_all_are_taken(world: World, budget: int, least: float) -> None:
    proposal, places = grown(world, budget, least)
    tree = proposal.tree
    tree.check_integrity()
    for node, path in enumerate(places):
        assert tuple(tree.tokens[n] for n in tree.path_to(node)[1:]) == path
    known = dict(world.paths())
    found = [known[path] for path in places[1:]]
    all_likely = sorted((likely for likely in known.values() if likely >= least), reverse=True)
    assert found == all_likely[:budget], "best first"
    for node in range(2, tree.num_nodes):
        if found[node - 1] == found[node - 2]:
            assert tree.parents[node] >= tree.parents[node - 1], "among equals the shallower"
    assert proposal.buckets == (None, *places[1:])


#      7         said by the target: 1 4 ...
#    /   \
#   1     2      asked about it: 1 and 2, then 4 and 5; nobody knows what follows 2 or 4's sibling
#  / \     \
# 4   5     6
FORK = TokenTree.drafted([7, 1, 2, 4, 5, 6], [-1, 0, 0, 1, 1, 2], [1.0] + [0.5] * 5, "test")


def test_what_the_target_chose_teaches_of_all_children_on_its_way() -> None:
    proposal, calibration = Proposal(FORK, (None, "a", "b", "c", None, "d")), Calibration()
    proposal.teach(calibration, (1, 4, 9))
    assert calibration.rate("a", 0.5) > 0.5 > calibration.rate("b", 0.5)
    assert calibration.rate("c", 0.5) > 0.5 == calibration.rate("d", 0.5)
    assert calibration.rate(None, 0.5) == 0.5


def test_first_children_teach_how_good_the_drafter_is() -> None:
    calibrations = [Calibration() for _ in range(3)]
    before = first_rate(calibrations[0])
    proposal = Proposal(FORK, (None, "a", "b", "c", None, "d"))
    for calibration, tokens in zip(calibrations, ((1, 4), (2, 9), (9,)), strict=True):
        proposal.teach(calibration, tokens)
    rates = [first_rate(calibration) for calibration in calibrations]
    assert rates[0] > before > rates[2] > rates[1], "twice right; once wrong; twice wrong"
    untold = Calibration()
    Proposal(FORK, (None,) * 6).teach(untold, (1, 4))
    assert first_rate(untold) == before, "nodes of no bucket say nothing"


def test_a_walk_ends_where_the_target_leaves_the_tree() -> None:
    assert list(walked(FORK, (1, 5, 8, 3))) == [(0, 1), (1, 5), (4, 8)]
    assert list(walked(FORK, (9, 1))) == [(0, 9)]
    assert list(walked(FORK, ())) == []


def test_what_was_written_is_held_as_far_as_the_text_goes_along() -> None:
    assert held_path(FORK, (7, 2, 6, 3)) == [0, 2, 5]
    assert held_path(FORK, (7, 3)) == [0]
    assert held_path(FORK, (1, 4)) == [] == held_path(FORK, ())
