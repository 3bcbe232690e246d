"""Masks: full, sliding and chunked layers, against the rule a pair of tokens at a time."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig

from mmspec.attention import RowNodes
from mmspec.attention.reach import Reach
from mmspec.kv import WritePlan
from mmspec.target.families import layer_reaches
from mmspec.target.masks import LayerKind, MaskRule, nodes_of
from mmspec.tree import TokenTree

WINDOW, CHUNK = 3, 4
RULE = MaskRule(
    kinds=("full_attention", "sliding_attention", "chunked_attention"),
    window=WINDOW,
    chunk=CHUNK,
    as_dict=True,
)

#      0
#     / \
#    1   2
#    |\
#    3 4
FIVE = TokenTree((7, 5, 8, 6, 9), (-1, 0, 0, 1, 1), (1.0,) * 5, ("", *"aaaa"))


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Any shape of up to seven nodes; the masks never look at the tokens."""
    parents = [-1]
    for node in range(1, draw(st.integers(1, 7))):
        parents.append(draw(st.integers(0, node - 1)))
    count = len(parents)
    return TokenTree(tuple(range(count)), tuple(parents), (1.0,) * count, ("",) * count)


def below(trees: Sequence[TokenTree], lengths: Sequence[int]) -> list[RowNodes]:
    """The trees behind so many committed tokens."""
    counts = [tree.num_nodes for tree in trees]
    return nodes_of(trees, WritePlan([0] * len(trees), list(lengths), counts), [0] * len(trees))


def drawn(mask: Tensor) -> list[str]:
    """One row's mask (1, nodes, columns) as text: x where a node may look."""
    return ["".join("x" if value == 0 else "." for value in node) for node in mask[0].tolist()]


def may_look(kind: LayerKind, tree: TokenTree, length: int, node: int, column: int) -> bool:
    """The rule itself: what `node` may see of a row with `length` committed tokens."""
    position = length + tree.depths[node]
    if column < length:
        other = column
    elif column < length + tree.num_nodes:
        if column - length not in tree.path_to(node):
            return False
        other = length + tree.depths[column - length]
    else:
        return False
    if kind == "sliding_attention":
        return other > position - WINDOW
    if kind == "chunked_attention":
        return other // CHUNK == position // CHUNK
    return True


# LAW


def test_a_node_sees_the_prefix_and_its_ancestors() -> None:
    mask = RULE.build(below([FIVE], [2]), torch.float32)["full_attention"]
    assert drawn(mask[0]) == [
        "xxx....",  # 0
        "xxxx...",  # 1
        "xxx.x..",  # 2 does not see its sibling
        "xxxx.x.",  # 3
        "xxxx..x",  # 4
    ]


def test_a_window_counts_depths_not_nodes() -> None:
    #  positions: prefix 0 1 2 3, node 0 at 4, nodes 1 2 at 5, nodes 3 4 at 6
    mask = RULE.build(below([FIVE], [4]), torch.float32)["sliding_attention"]
    assert drawn(mask[0]) == [
        "..xxx....",  # 0 sees positions 2 3 4
        "...xxx...",  # 1 sees 3 4 5
        "...xx.x..",  # 2 too, and its node is another
        "....xx.x.",  # 3 sees 4 5 6
        "....xx..x",  # 4
    ]


def test_a_chunk_begins_anew() -> None:
    #  chunks of 4: prefix 0 1 and node 0 at 2, nodes 1 2 at 3 | nodes 3 4 at 4
    mask = RULE.build(below([FIVE], [2]), torch.float32)["chunked_attention"]
    assert drawn(mask[0]) == ["xxx....", "xxxx...", "xxx.x..", ".....x.", "......x"]


def test_short_rows_are_padded_and_padding_sees_one_token() -> None:
    masks = RULE.build(below([FIVE, TokenTree.root(7)], [0, 3]), torch.float32)
    assert drawn(masks["full_attention"][1]) == ["xxxx."] + ["x...."] * 4
    # A row of only -inf would make NaN of the padding, and 0 * NaN of its neighbours.
    assert all(bool((mask == 0).any(-1).all()) for mask in masks.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_is_added_to_scores_of_its_dtype(dtype: torch.dtype) -> None:
    for mask in RULE.build(below([FIVE], [3]), dtype).values():
        assert mask.dtype == dtype
        assert mask.shape == (1, 1, 5, 8)
        assert set(mask.unique().tolist()) == {0.0, torch.finfo(dtype).min}


def test_one_kind_of_layer_may_take_the_mask_alone() -> None:
    alone = MaskRule(("sliding_attention",), WINDOW, None, as_dict=False)
    mask = alone.build(below([FIVE], [4]), torch.float32)
    assert isinstance(mask, Tensor)
    assert torch.equal(mask, RULE.build(below([FIVE], [4]), torch.float32)["sliding_attention"])


# ORACLE


@given(st.lists(st.tuples(trees(), st.integers(0, 9)), min_size=1, max_size=3))
def test_masks_of_ragged_rows_follow_the_rule(rows: list[tuple[TokenTree, int]]) -> None:
    masks = RULE.build(
        below([tree for tree, _ in rows], [length for _, length in rows]), torch.float32
    )
    assert masks.keys() == set(RULE.kinds)
    nodes = max(tree.num_nodes for tree, _ in rows)
    columns = max(length + tree.num_nodes for tree, length in rows)
    for kind, mask in masks.items():
        assert mask.shape == (len(rows), 1, nodes, columns)
        for row, (tree, length) in enumerate(rows):
            expected = [
                "".join(
                    "x" if may_look(kind, tree, length, node, column) else "."
                    for column in range(columns)
                )
                for node in range(tree.num_nodes)
            ]
            assert drawn(mask[row])[: tree.num_nodes] == expected, f"{kind}, row {row}"


def test_layers_of_one_kind_share_what_tells_how_far_they_look() -> None:
    """Each looks it up in every forward: the same object is found without comparing fields."""
    kinds = ["full_attention", "sliding_attention"] * 3
    reaches = layer_reaches(LlamaConfig(num_hidden_layers=6, layer_types=kinds), RULE)
    assert reaches == (Reach(), Reach(window=WINDOW)) * 3
    assert len(set(map(id, reaches))) == 2
