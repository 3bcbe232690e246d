"""Bitwise attention: equal bits for every way of cutting prefix and path."""

from collections.abc import Sequence
from typing import NamedTuple

import interpreted  # noqa: F401  # before triton
import numpy as np
import pytest
import torch
from torch import Tensor

from mmspec.attention import LayerRule, Reach, RowNodes, TreeCall, tree_attention
from mmspec.attention.bitwise import BLOCK, CallPaths, RowPaths, ancestors_of
from mmspec.attention.tensors import TreeTensors
from mmspec.kv import FlatLayer
from mmspec.tree import TokenTree

WIDTH = 9  # nodes of every call
RULES = {
    "full": LayerRule(Reach(), 0.3),
    "window": LayerRule(Reach(window=37), 0.3),
    "chunk": LayerRule(Reach(chunk=50), 0.3),
    "softcap_sinks": LayerRule(Reach(), 0.3, 20.0, torch.tensor([0.5, -1.0, 2.0, 0.0])),
}


class Text(NamedTuple):
    """What one text has at each position."""

    queries: Tensor  # (positions, heads, head_dim)
    keys: Tensor  # (positions, kv_heads, head_dim)
    values: Tensor


def text_of(positions: int, dtype: torch.dtype, seed: int = 0) -> Text:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((4, 16), (2, 16), (2, 16))
    return Text(*(torch.randn(positions, *s, generator=draw).to(dtype) for s in shapes))


def attended(
    text: Text,
    committed: int,
    depth: int,
    rule: LayerRule,
    *,
    draw: np.random.Generator,
    by_kernel: bool = False,
) -> Tensor:
    """(depth, heads, head_dim): of the positions behind the committed ones, as the path of a random
    tree in a random row of a batch of two."""
    parents, on_path = [-1], [0]
    while len(on_path) < depth or (len(parents) < WIDTH and draw.random() < 0.7):
        room = WIDTH - len(parents) - (depth - len(on_path))
        if len(on_path) < depth and (room <= 0 or draw.random() < 0.5):
            parents.append(on_path[-1])
            on_path.append(len(parents) - 1)
        else:
            parents.append(int(draw.integers(len(parents))))
    real = len(parents)  # of WIDTH nodes: the others are padding
    tree = TokenTree((0,) * real, tuple(parents), (1.0,) * real, ("",) * real)
    dtype = text.keys.dtype
    start, own_row = int(draw.integers(0, 40)), int(draw.integers(2))
    slots = start + committed + WIDTH + 300
    keys, values = (torch.randn(slots, 2, 16).to(dtype) for _ in range(2))
    query = torch.randn(2, 4, WIDTH, 16).to(dtype)
    for buffer, own in ((keys, text.keys), (values, text.values)):
        buffer[start : start + committed] = own[:committed]
        for at, node in enumerate(on_path):
            buffer[start + committed + node] = own[committed + at]
    for at, node in enumerate(on_path):
        query[own_row, :, node] = text.queries[committed + at]
    row = RowNodes(start, committed, tree.ancestor_mask, np.array(tree.depths))
    behind = start + committed + WIDTH
    other = RowNodes(behind, int(draw.integers(0, 200)), tree.ancestor_mask, np.array(tree.depths))
    rows = [row, other] if own_row == 0 else [other, row]
    # In some calls the second row is padding.
    rows = rows[: int(draw.integers(own_row + 1, 3))]
    if by_kernel:
        kernel = pytest.importorskip("mmspec.attention.kernels.bitwise")
        assert kernel.can_attend(query, keys, values)
        tensors = TreeTensors.of(rows, "cpu", batch=2, nodes=WIDTH, tail=WIDTH)
        longest = max(row.num_columns for row in rows)
        columns = int(draw.integers(longest, longest + 200))
        ancestors = ancestors_of(tensors)
        out = kernel.attend(query, keys, values, tensors, ancestors, columns=columns, rule=rule)
        for index in range(2):  # NaN there would go on through the model
            count = rows[index].num_nodes if index < len(rows) else 0
            assert not out[index, count:].any(), "padding is not zero"
    else:
        call = TreeCall(rows, [FlatLayer()], [rule.reach], paths=CallPaths())
        out = tree_attention(query, keys, values, call=call, rule=rule)
    return out[own_row, on_path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", RULES)
def test_no_cut_no_tree_and_no_neighbour_changes_a_bit(name: str, dtype: torch.dtype) -> None:
    rule, length = RULES[name], 2 * BLOCK + 12
    text, draw = text_of(length, dtype), np.random.default_rng(0)
    one_by_one = torch.cat([attended(text, i, 1, rule, draw=draw) for i in range(length)])
    for _ in range(25):
        depth = int(draw.integers(1, WIDTH + 1))
        border = int(draw.integers(1, 3)) * BLOCK  # often near the border of a block
        committed = min(max(border - int(draw.integers(-2, WIDTH)), 0), length - depth)
        found = attended(text, committed, depth, rule, draw=draw)
        assert torch.equal(found, one_by_one[committed : committed + depth]), f"cut at {committed}"


@pytest.mark.parametrize("name", RULES)
def test_it_is_attention(name: str) -> None:
    rule, text = RULES[name], text_of(150, torch.float64)
    found = attended(text, 143, 7, rule, draw=np.random.default_rng(1))
    for at, position in enumerate(range(143, 150)):
        first = int(rule.reach.first_visible(np.array([position]))[0])
        keys, values = (
            t[first : position + 1].repeat_interleave(2, dim=1) for t in (text.keys, text.values)
        )
        scores = torch.einsum("hd,khd->hk", text.queries[position], keys) * rule.scaling
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        sinks = scores[:, :0] if rule.sinks is None else rule.sinks.double().unsqueeze(1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=1), dim=-1)[:, : scores.shape[1]]
        expected = torch.einsum("hk,khd->hd", weights, values)
        torch.testing.assert_close(found[at], expected, rtol=1e-10, atol=1e-12)


def test_a_node_that_skips_a_position_is_refused() -> None:
    visible = np.array([[True, False, False], [True, True, False], [True, False, True]])
    row = RowNodes(0, 4, visible, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="sees the depths"):
        RowPaths.of(row, 3)


CUTS = ((9, BLOCK - 4), (3, 2 * BLOCK - 1), (5, BLOCK), (7, 2 * BLOCK - 7), (4, 0), (6, 131))


@pytest.fixture(autouse=True)
def segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a text has several, and more than are summed up at once."""
    kernel = pytest.importorskip("mmspec.attention.kernels.bitwise")
    monkeypatch.setattr(kernel, "_SEGMENT", BLOCK)
    monkeypatch.setattr(kernel, "_TOGETHER", 2)


def check_kernel(name: str, dtype: torch.dtype, cuts: Sequence[tuple[int, int]]) -> None:
    rule, text, draw = RULES[name], text_of(2 * BLOCK + 12, dtype), np.random.default_rng(2)
    for depth, committed in cuts:
        found = attended(text, committed, depth, rule, draw=draw, by_kernel=True)
        for at in {depth // 2, depth - 1}:
            alone = attended(text, committed + at, 1, rule, draw=draw, by_kernel=True)
            assert torch.equal(found[at], alone[0]), f"cut at {committed}, node {at}"


@pytest.mark.parametrize(
    ("name", "dtype"), [("window", torch.bfloat16), ("softcap_sinks", torch.float32)]
)
def test_no_cut_changes_a_bit_of_the_kernels(name: str, dtype: torch.dtype) -> None:
    check_kernel(name, dtype, CUTS[:2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_none_of_many_cuts_changes_a_bit_of_the_kernels(name: str, dtype: torch.dtype) -> None:
    check_kernel(name, dtype, CUTS)


@pytest.mark.parametrize("name", ["chunk", "softcap_sinks"])
def test_the_kernel_is_the_attention_of_tensor_operations(name: str) -> None:
    rule, text = RULES[name], text_of(150, torch.float32)
    by_kernel, by_tensors = (
        attended(text, 143, 7, rule, draw=np.random.default_rng(1), by_kernel=how)
        for how in (True, False)
    )
    torch.testing.assert_close(by_kernel, by_tensors, rtol=1e-5, atol=1e-6)


def test_the_kernel_takes_heads_of_any_size_and_group() -> None:
    kernel = pytest.importorskip("mmspec.attention.kernels.bitwise")
    draw, rule = np.random.default_rng(3), LayerRule(Reach(), 0.2)
    for heads, kv_heads, head_dim in ((7, 1, 80), (8, 8, 24), (6, 2, 256)):
        parents = [-1, *(int(draw.integers(n)) for n in range(1, 6))]
        tree = TokenTree((0,) * 6, tuple(parents), (1.0,) * 6, ("",) * 6)
        row = RowNodes(3, 70, tree.ancestor_mask, np.array(tree.depths))
        tensors = TreeTensors.of([row], "cpu")
        keys, values = (torch.randn(90, kv_heads, head_dim) for _ in range(2))
        query = torch.randn(1, heads, 6, head_dim)
        ancestors = ancestors_of(tensors)
        found = kernel.attend(query, keys, values, tensors, ancestors, columns=90, rule=rule)
        expected = tree_attention(
            query, keys, values, call=TreeCall([row], [FlatLayer()], [rule.reach]), rule=rule
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ancestors_stand_by_their_depth() -> None:
    #      0
    #     / \
    #    1   2
    #    |   |
    #    4   3
    tree = TokenTree((0,) * 5, (-1, 0, 0, 2, 1), (1.0,) * 5, ("",) * 5)
    rows = [RowNodes(7, 5, tree.ancestor_mask, np.array(tree.depths))]
    tensors = TreeTensors.of(rows, "cpu", batch=2, nodes=6, tail=6)
    expected = torch.full((2, 6, 6), -1, dtype=torch.int32)
    for node in range(5):
        path = tree.path_to(node)
        expected[0, node, : len(path)] = torch.tensor(path, dtype=torch.int32)
    assert torch.equal(ancestors_of(tensors), expected)


def test_ancestors_of_more_nodes_than_a_word_of_bits_holds() -> None:
    chain = TokenTree.chain(0, [0] * 69, [1.0] * 69, "")
    tensors = TreeTensors.of([RowNodes(0, 5, chain.ancestor_mask, np.array(chain.depths))], "cpu")
    places = torch.arange(70, dtype=torch.int32)
    expected = torch.where(places <= places.unsqueeze(1), places, -1)
    assert torch.equal(ancestors_of(tensors)[0], expected)
