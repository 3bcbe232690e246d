"""Continuations of several places, weighted, as one trie."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tries import TrieNode, build_trie

from mmspec.retrieval.continuations import SOURCE_WEIGHTS, Continuation

continuations = st.lists(
    st.builds(
        Continuation,
        st.lists(st.integers(0, 3), max_size=4),
        match_length=st.integers(1, 5),
        source=st.sampled_from([*SOURCE_WEIGHTS]),
        distance=st.none() | st.floats(0.0, 4.0),
    ),
    max_size=8,
)


def path_of(trie: tuple[TrieNode, ...], index: int) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while index:
        path = (trie[index].token, *path)
        index = trie[index].parent
    return path


# LAW


def test_two_places_share_what_they_agree_on() -> None:
    #         root           a match of 3 tokens weighs 9, one of 1 token 1
    #          |
    #        5 (1.0, 2 places)
    #       /         \
    #   6 (.9)       7 (.1)
    trie = build_trie([Continuation([5, 7], match_length=1), Continuation([5, 6], match_length=3)])
    assert trie == (
        TrieNode(token=-1, parent=-1, share=1.0, match_length=0, num_places=0),
        TrieNode(token=5, parent=0, share=1.0, match_length=3, num_places=2),
        TrieNode(token=6, parent=1, share=0.9, match_length=3, num_places=1),
        TrieNode(token=7, parent=1, share=0.1, match_length=1, num_places=1),
    )


@pytest.mark.parametrize("nothing", [[], [Continuation([], match_length=4)]])
def test_nothing_found_is_node_0_alone(nothing: list[Continuation]) -> None:
    assert len(build_trie(nothing)) == 1


def test_several_short_matches_outweigh_one_that_is_hardly_longer() -> None:
    found = [Continuation([9], 3), *[Continuation([8], 2)] * 3]
    assert [node.token for node in build_trie(found)] == [-1, 8, 9]


@given(continuations)
def test_siblings_share_the_whole_and_the_heaviest_comes_first(found: list[Continuation]) -> None:
    trie = build_trie(found)
    for parent in range(len(trie)):
        shares = [node.share for node in trie if node.parent == parent]
        assert shares == sorted(shares, reverse=True)
        assert not shares or sum(shares) == pytest.approx(1.0)


@given(continuations)
def test_nodes_are_in_depth_first_order(found: list[Continuation]) -> None:
    trie = build_trie(found)
    stack = [0]
    for index, node in enumerate(trie[1:], start=1):
        while stack and stack[-1] != node.parent:
            stack.pop()
        assert stack, f"node {index} comes after its parent's subtree was left"
        stack.append(index)


def test_an_equal_match_of_the_request_itself_outweighs_a_corpus() -> None:
    found = [Continuation([7], 4, "suffix"), Continuation([8], 4, "online")]
    assert [node.token for node in build_trie(found)] == [-1, 8, 7]
    assert [node.source for node in build_trie(found)[1:]] == ["online", "suffix"]


def test_a_nearer_neighbour_weighs_more_and_a_long_match_never_less_for_being_near() -> None:
    near, far = (Continuation([7], 0, "dense", distance) for distance in (0.1, 0.9))
    assert near.weight() > far.weight() > 0
    assert Continuation([7], 32, "dense", 4.0).weight() == Continuation([7], 32, "suffix").weight()


def test_the_heaviest_places_count_where_there_are_too_many() -> None:
    found = [*(Continuation([token], 1) for token in range(40)), Continuation([99], 5)]
    tokens = {node.token for node in build_trie(found)[1:]}
    assert tokens == {99, *range(31)}


# ORACLE


@given(continuations)
def test_every_node_is_supported_as_the_places_say(found: list[Continuation]) -> None:
    trie = build_trie(found)
    nodes = {path_of(trie, index): node for index, node in enumerate(trie)}
    assert len(nodes) == len(trie), "two nodes hold the same path"
    prefixes = {tuple(c.tokens[:end]) for c in found for end in range(len(c.tokens) + 1)} | {()}
    assert nodes.keys() == prefixes

    def weight(path: tuple[int, ...]) -> float:
        return sum(one.weight() for one in found if tuple(one.tokens[: len(path)]) == path)

    for path in prefixes - {()}:
        support = [one for one in found if tuple(one.tokens[: len(path)]) == path]
        siblings = [other for other in prefixes if other and other[:-1] == path[:-1]]
        node = nodes[path]
        longest = max(one.match_length for one in support)
        assert (node.num_places, node.match_length) == (len(support), longest), path
        assert node.share == pytest.approx(weight(path) / sum(map(weight, siblings))), path
        heaviest = max(one.weight() for one in support)
        assert node.source in {one.source for one in support if one.weight() == heaviest}
        distances = [one.distance for one in support if one.distance is not None]
        assert node.distance == (min(distances) if distances else None)
