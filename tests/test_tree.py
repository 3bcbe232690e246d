"""TokenTree: pruning, merging, cutting; a small tree against every subtree there is."""

from dataclasses import replace
from functools import cached_property
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmspec.tree import TokenTree

#            0:7
#           /   \
#     1:5 .9     2:8 .6       token, confidence
#     /    \
#  3:6 .8  4:9 .5
FIVE = TokenTree(
    tokens=(7, 5, 8, 6, 9),
    parents=(-1, 0, 0, 1, 1),
    confidence=(1.0, 0.9, 0.6, 0.8, 0.5),
    drafters=("", "a", "a", "b", "b"),
)

DRAWN = replace(FIVE, q=torch.softmax(torch.arange(100.0).view(5, 20), dim=-1))


@st.composite
def trees(draw: st.DrawFn, *, max_nodes: int = 9, drafter: str = "a") -> TokenTree:
    """Trees over six tokens below node 0 = token 7, whose children differ."""
    tokens, parents, confidence = [7], [-1], [1.0]
    for _ in range(draw(st.integers(0, max_nodes - 1))):
        parent, token = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, 5))
        if (parent, token) not in set(zip(parents, tokens, strict=True)):
            tokens.append(token)
            parents.append(parent)
            confidence.append(draw(st.integers(0, 20)) / 20)
    drafters = ("", *[drafter] * (len(tokens) - 1))
    return TokenTree(tuple(tokens), tuple(parents), tuple(confidence), drafters)


def path_tokens(tree: TokenTree) -> dict[tuple[int, ...], tuple[float, str]]:
    """Each node's path of tokens -> its confidence and drafter: what a tree says, without order."""
    return {
        tuple(tree.tokens[n] for n in tree.path_to(node)): (
            tree.confidence[node],
            tree.drafters[node],
        )
        for node in range(tree.num_nodes)
    }


def is_connected(tree: TokenTree, nodes: set[int]) -> bool:
    return all(tree.parents[node] in nodes for node in nodes if node)


# LAW


def test_depths_and_paths_of_a_drawn_tree() -> None:
    assert FIVE.depths == (0, 1, 1, 2, 2)
    assert FIVE.path_to(0) == (0,)
    assert FIVE.path_to(4) == (0, 1, 4)
    assert FIVE.cumulative_confidence == pytest.approx((1.0, 0.9, 0.6, 0.72, 0.45))


def test_a_child_is_found_by_its_token_under_its_own_parent_only() -> None:
    assert FIVE.child(0, 8) == 2
    assert FIVE.child(1, 9) == 4
    assert FIVE.child(2, 9) is None, "9 follows node 1, not node 2"
    assert FIVE.child(0, 7) is None, "node 0 is nobody's child"


def test_root_and_chain_are_the_two_simplest_trees() -> None:
    assert TokenTree.root(7).num_nodes == 1
    chain = TokenTree.chain(7, [5, 6], [0.9, 0.8], "a")
    assert path_tokens(chain) == {(7,): (1.0, ""), (7, 5): (0.9, "a"), (7, 5, 6): (0.8, "a")}
    for tree in (TokenTree.root(7), chain):
        tree.check_integrity()
        assert tree.is_chain
    assert not FIVE.is_chain
    assert not TokenTree((7, 5, 6), (-1, 0, 0), (1.0, 0.9, 0.8), ("", "a", "a")).is_chain


def test_root_knows_what_any_tree_of_its_fields_finds() -> None:
    known, made = TokenTree.root(7), TokenTree((7,), (-1,), (1.0,), ("",))
    found = {n for n, v in vars(TokenTree).items() if isinstance(v, cached_property)}
    assert found <= vars(known).keys()
    assert all(getattr(known, name) == getattr(made, name) for name in found)


def test_prune_keeps_a_deep_likely_node_before_a_shallow_unlikely_one() -> None:
    #      0:7               0:7
    #     /   \               |
    #   .9     .6     ->     .9       budget 2: .9 and .9 * .8 = .72 beat .6
    #  /  \                   |
    # .8  .5                 .8
    assert path_tokens(FIVE.prune(2)).keys() == {(7,), (7, 5), (7, 5, 6)}


def test_prune_within_the_budget_changes_nothing() -> None:
    assert DRAWN.prune(4) is DRAWN


def test_what_looks_at_the_drawn_tokens_drops_q() -> None:
    assert DRAWN.prune(3).q is None
    assert DRAWN.best_chain().q is None
    assert DRAWN.keep([0, 1, 2]).q is None
    assert DRAWN.merge(FIVE).q is None and FIVE.merge(DRAWN).q is None


def test_a_cut_at_a_depth_keeps_each_nodes_own_q() -> None:
    assert DRAWN.q is not None
    assert DRAWN.cut(2) is DRAWN
    cut = DRAWN.cut(1)
    assert cut.q is not None and torch.equal(cut.q, DRAWN.q[[0, 1, 2]])
    cut.check_integrity(vocab_size=20)


def test_q_is_no_part_of_what_a_tree_says() -> None:
    assert DRAWN == FIVE and hash(DRAWN) == hash(FIVE)


@given(trees(), st.integers(0, 12), st.floats(0.0, 1.0))
def test_pruned_below_a_confidence_no_path_is_less_likely(
    tree: TokenTree, budget: int, least: float
) -> None:
    pruned, best = tree.prune(budget, min_confidence=least), tree.prune(budget)
    pruned.check_integrity()
    kept = [n for n, likely in enumerate(best.cumulative_confidence) if likely >= least]
    assert is_connected(best, set(kept))
    assert path_tokens(pruned) == path_tokens(best.keep(kept))


def test_prune_to_nothing_is_plain_decoding() -> None:
    assert FIVE.prune(0) == TokenTree.root(7)


@given(trees(), st.integers(0, 9))
def test_pruned_nodes_keep_their_path_confidence_and_drafter(tree: TokenTree, budget: int) -> None:
    pruned = tree.prune(budget)
    pruned.check_integrity()
    assert pruned.num_nodes - 1 == min(budget, tree.num_nodes - 1)
    assert path_tokens(pruned).items() <= path_tokens(tree).items()


@given(trees(), st.integers(0, 4))
def test_cut_keeps_exactly_the_nodes_down_to_the_depth(tree: TokenTree, depth: int) -> None:
    expected = {path: said for path, said in path_tokens(tree).items() if len(path) <= depth + 1}
    assert path_tokens(tree.cut(depth)) == expected


def test_best_chain_follows_the_most_confident_child() -> None:
    assert path_tokens(FIVE.best_chain()).keys() == {(7,), (7, 5), (7, 5, 6)}
    greedy = replace(FIVE, confidence=(1.0, 0.5, 0.6, 0.9, 0.9))
    assert path_tokens(greedy.best_chain()).keys() == {(7,), (7, 8)}, "a chain looks one step ahead"


@given(trees())
def test_best_chain_is_one_path_to_a_leaf(tree: TokenTree) -> None:
    chain = tree.best_chain()
    assert chain.parents == tuple(range(-1, chain.num_nodes - 1))
    assert path_tokens(chain).items() <= path_tokens(tree).items()
    last = tuple(chain.tokens)
    longer = [path for path in path_tokens(tree) if path[:-1] == last]
    assert not longer, f"the chain stops at {last}, though {longer} go on"


def test_merge_joins_what_both_hold_and_keeps_the_higher_confidence() -> None:
    #   0:7        0:7             0:7
    #    |    +   /   \     =     /   \
    #   5 .4    5 .7   8 .2     5 .7   8 .2
    #    |                       |
    #   6 .9                    6 .9
    one = TokenTree.chain(7, [5, 6], [0.4, 0.9], "one")
    two = TokenTree((7, 5, 8), (-1, 0, 0), (1.0, 0.7, 0.2), ("", "two", "two"))
    assert path_tokens(one.merge(two)) == {
        (7,): (1.0, ""),
        (7, 5): (0.7, "two"),
        (7, 5, 6): (0.9, "one"),
        (7, 8): (0.2, "two"),
    }


@given(trees(drafter="a"), trees(drafter="b"))
def test_merge_is_the_union_of_paths_in_either_order(one: TokenTree, two: TokenTree) -> None:
    merged, swapped = one.merge(two), two.merge(one)
    merged.check_integrity()
    first, second = path_tokens(one), path_tokens(two)
    assert path_tokens(merged).keys() == first.keys() | second.keys()
    for path, (confidence, drafter) in path_tokens(merged).items():
        said = [tree[path] for tree in (first, second) if path in tree]
        assert confidence == max(c for c, _ in said), f"path {path}: {said} became {confidence}"
        assert (confidence, drafter) in said
        assert path_tokens(swapped)[path][0] == confidence


@given(trees())
def test_merging_a_tree_with_itself_or_with_no_draft_adds_nothing(tree: TokenTree) -> None:
    assert tree.merge(tree) == tree
    assert tree.merge(TokenTree.root(7)) == tree
    assert path_tokens(TokenTree.root(7).merge(tree)) == path_tokens(tree)


def test_merge_refuses_trees_of_different_texts() -> None:
    with pytest.raises(ValueError, match="start at different tokens: 7, 8"):
        FIVE.merge(TokenTree.root(8))


@given(trees())
def test_every_drawn_tree_is_sound(tree: TokenTree) -> None:
    tree.check_integrity(vocab_size=8)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"parents": (-1, 0, 0, 1)}, "different or zero length"),
        ({"confidence": (1.0,)}, "different or zero length"),
        ({"drafters": ("",)}, "different or zero length"),
        ({"tokens": (), "parents": (), "confidence": (), "drafters": ()}, "zero length"),
        ({"q": torch.ones(4, 20)}, r"q has the shape \(4, 20\), .* each of 5 nodes"),
        ({"q": torch.ones(5, 19)}, r"q has the shape \(5, 19\), .* size \(20\)"),
        ({"q": torch.ones(5)}, r"q has the shape \(5,\)"),
        ({"parents": (0, 0, 0, 1, 1)}, "node 0 must have parent -1"),
        ({"parents": (-1, 0, 0, 3, 1)}, "node 3 has parent 3"),
        ({"parents": (-1, 0, 0, 4, 1)}, "node 3 has parent 4"),
        ({"parents": (-1, 0, -1, 1, 1)}, "node 2 has parent -1"),
        ({"tokens": (7, 5, 5, 6, 9)}, "two children of one node hold the same token"),
        ({"tokens": (7, 5, 8, 6, 20)}, r"tokens \[20\] lie outside of the vocabulary of 20"),
        ({"tokens": (7, -1, 8, 6, 9)}, r"tokens \[-1\] lie outside"),
    ],
)
def test_check_integrity_refuses(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(FIVE, **change).check_integrity(vocab_size=20)


@pytest.mark.parametrize("confidence", [1.5, -0.1, float("nan")])
def test_check_integrity_refuses_what_is_no_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        replace(FIVE, confidence=(1.0, 0.5, 0.6, confidence, 0.5)).check_integrity()


# ORACLE


@given(trees(), st.integers(0, 8))
def test_prune_is_the_best_of_all_connected_subtrees(tree: TokenTree, budget: int) -> None:
    budget = min(budget, tree.num_nodes - 1)
    value = tree.cumulative_confidence
    best = max(
        sum(value[node] for node in nodes)
        for nodes in combinations(range(1, tree.num_nodes), budget)
        if is_connected(tree, {0, *nodes})
    )
    kept = sum(tree.prune(budget).cumulative_confidence[1:])
    assert kept == pytest.approx(best), f"kept {kept}, the best subtree of {budget} has {best}"


@given(trees())
def test_ancestor_mask_rows_are_the_paths(tree: TokenTree) -> None:
    for node, row in enumerate(tree.ancestor_mask):
        assert tuple(row.nonzero()[0]) == tree.path_to(node), f"node {node}"


# LAW: scouts, which are scored whatever is thought of them

SCOUTED = TokenTree(  # 0 - 1 - 2 is likely; 3 - 4 and 3 - 5 are scouts
    (9, 1, 2, 3, 4, 5),
    (-1, 0, 1, 0, 3, 3),
    (1.0, 0.9, 0.9, 0.1, 0.1, 0.1),
    ("", "a", "a", "b", "b", "b"),
    scouts=frozenset({3, 4, 5}),
)


def test_scouts_have_half_of_a_budget_or_what_the_others_leave() -> None:
    SCOUTED.check_integrity()
    for budget, tokens, scouts in (
        (5, (9, 1, 2, 3, 4, 5), {3, 4, 5}),
        (4, (9, 1, 2, 3, 4), {3, 4}),
        (3, (9, 1, 2, 3), {3}),
        (2, (9, 1, 3), {2}),
        (1, (9, 1), set()),
    ):
        pruned = SCOUTED.prune(budget)
        assert (pruned.tokens, pruned.scouts) == (tokens, scouts), budget
        pruned.check_integrity()
    assert SCOUTED.prune(5, min_confidence=0.5) is SCOUTED
    assert SCOUTED.with_scouts(0).prune(5, min_confidence=0.5).tokens == (9, 1, 2)


def test_scouts_are_followed_through_cuts_and_merges() -> None:
    assert SCOUTED.cut(1).scouts == {2}
    other = TokenTree.chain(9, (3, 4), (0.8, 0.8), "c")
    merged = other.merge(SCOUTED)
    assert merged.tokens == (9, 3, 4, 1, 2, 5) and merged.scouts == {1, 2, 5}
    assert merged.drafters[1] == "c"
    merged.check_integrity()
    assert SCOUTED.merge(other).scouts == {3, 4, 5}


def test_a_scout_below_a_node_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="scout 4"):
        replace(SCOUTED, scouts=frozenset({4})).check_integrity()
