"""Trie: grown where it is asked, it is the whole trie that building it at once would give."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from tries import build_trie

from mmspec.retrieval import Branch, Continuation, Trie

continuations = st.lists(
    st.builds(
        Continuation,
        st.lists(st.integers(0, 3), max_size=4),
        match_length=st.integers(1, 5),
        source=st.just("online"),
        distance=st.none(),
    ),
    max_size=40,
)


def walk(trie: Trie, branch: Branch, path: tuple[int, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Depth first: every branch's path and what supports it."""
    for child in trie.children(branch):
        below = (*path, child.token)
        yield below, child.share, child.match_length, len(child.places)
        yield from walk(trie, child, below)


@given(continuations)
def test_growing_it_everywhere_gives_the_trie_that_is_built_at_once(
    found: list[Continuation],
) -> None:
    whole = build_trie(found)
    paths: list[tuple[int, ...]] = [()]
    for node in whole[1:]:
        paths.append((*paths[node.parent], node.token))
    expected = [
        (path, node.share, node.match_length, node.num_places)
        for path, node in zip(paths[1:], whole[1:], strict=True)
    ]
    trie = Trie(found)
    assert list(walk(trie, trie.root)) == expected


@given(continuations)
def test_a_branch_knows_what_supports_it_most(found: list[Continuation]) -> None:
    trie = Trie(found)
    for branch in (trie.root, *trie.children(trie.root)):
        own = [trie.continuations[place] for place in branch.places]
        assert branch.match_length == max((one.match_length for one in own), default=0)
        assert not own or trie.heaviest(branch) == max(own, key=Continuation.weight)
