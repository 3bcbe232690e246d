"""Tree attention: every rung against softmax(q k) v written out, one node and head at a time."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmspec.attention import Reach, RowNodes, TreeCall, tree_attention
from mmspec.attention.flash_cpu import FlashCpu
from mmspec.attention.ladder import CPU_ORDER
from mmspec.attention.ladder import RUNGS as BACKENDS
from mmspec.attention.matmul import Matmul
from mmspec.attention.rows import Attended, merge
from mmspec.attention.rung import LayerRule, Rung

RUNGS: dict[str, Rung] = {
    "flash_cpu": FlashCpu(),
    "matmul": Matmul(),
    "tiled": Matmul(max_scores=700),
}
FULL = LayerRule(Reach(), 0.2)


@dataclass(frozen=True)
class Case:
    """One layer of one score call."""

    query: Tensor  # (batch, heads, nodes, head_dim)
    keys: Tensor  # (slots, kv_heads, head_dim)
    values: Tensor
    call: TreeCall

    def to(self, dtype: torch.dtype) -> "Case":
        tensors = {name: getattr(self, name).to(dtype) for name in ("query", "keys", "values")}
        return replace(self, **tensors, call=TreeCall(self.call.rows, (), ()))

    def attend(self, rung: Rung | None, rule: LayerRule) -> Tensor:
        attend = tree_attention if rung is None else rung.attend
        return attend(self.query, self.keys, self.values, call=self.call, rule=rule)


def case(
    rows: list[tuple[int, list[int]]], *, kv_heads: int = 2, group: int = 2, head_dim: int = 16
) -> Case:
    """`rows`: committed tokens and the nodes' parents of each; regions lie apart, what is between
    them is NaN."""
    drawn, start = [], 5
    slots = 5 + sum(committed + len(parents) + 7 for committed, parents in rows)
    keys, values = torch.full((2, slots, kv_heads, head_dim), torch.nan, dtype=torch.float64)
    for committed, parents in rows:
        visible, depths = np.eye(len(parents), dtype=np.bool_), [0] * len(parents)
        for node, parent in enumerate(parents[1:], start=1):
            visible[node] |= visible[parent]
            depths[node] = depths[parent] + 1
        drawn.append(RowNodes(start, committed, visible, np.array(depths)))
        count = committed + len(parents)
        for buffer in (keys, values):
            buffer[start : start + count] = torch.randn(count, kv_heads, head_dim)
        start += count + 7
    width = max(len(parents) for _, parents in rows)
    query = 2 * torch.randn(len(rows), kv_heads * group, width, head_dim, dtype=torch.float64)
    return Case(query, keys, values, TreeCall(drawn, (), ()))


def branching(nodes: int) -> list[int]:
    return [-1, *[node // 2 for node in range(nodes - 1)]]


def reference(case: Case, rule: LayerRule) -> Tensor:
    """(batch, nodes, heads, head_dim), as the definition says; padding nodes are zero."""
    batch, heads, width, _ = case.query.shape
    group = heads // case.keys.shape[1]
    out = case.query.new_zeros(batch, width, heads, case.values.shape[2])
    for index, row in enumerate(case.call.rows):
        positions = [*range(row.committed), *(row.committed + row.depths).tolist()]
        nodes = row.num_nodes
        for node in range(nodes):
            own = positions[len(positions) - nodes + node]
            tail = row.visible[node].tolist()
            seen = [
                row.start + column
                for column, position in enumerate(positions)
                if (column < row.committed or tail[column - row.committed])
                and (rule.reach.window is None or own - position < rule.reach.window)
                and (
                    rule.reach.chunk is None
                    or own // rule.reach.chunk == position // rule.reach.chunk
                )
            ]
            for head in range(heads):
                scores = (
                    case.keys[seen, head // group] @ case.query[index, head, node] * rule.scaling
                )
                if rule.softcap is not None:
                    scores = rule.softcap * torch.tanh(scores / rule.softcap)
                if rule.sinks is not None:
                    scores = torch.cat([scores, rule.sinks[head : head + 1]])
                weights = torch.softmax(scores, 0)[: len(seen)]
                out[index, node, head] = weights @ case.values[seen, head // group]
    return out


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


# LAW


def test_merging_two_halves_is_attention_over_the_whole() -> None:
    scores, values = torch.randn(1, 2, 3, 9).double(), torch.randn(1, 2, 9, 4).double()

    def attended(part: slice) -> Attended:
        own = scores[..., part]
        return Attended(torch.softmax(own, -1) @ values[:, :, part], torch.logsumexp(own, -1))

    merged, whole = merge(attended(slice(0, 5)), attended(slice(5, 9))), attended(slice(0, 9))
    assert largest(merged.out - whole.out) < 1e-12
    assert largest(merged.lse - whole.lse) < 1e-12


def test_a_node_does_not_see_its_sibling_nor_the_next_row() -> None:
    tree = case([(6, [-1, 0, 0]), (4, [-1])])
    before = tree.attend(None, FULL)
    start = tree.call.rows[0].start
    tree.keys[start + 6 + 1] += 3.0  # node 1 of row 0
    after = tree.attend(None, FULL)
    changed = (before - after).abs().amax((2, 3)) > 0
    assert changed.tolist() == [[False, True, False], [False, False, False]]


def test_padding_nodes_are_zero() -> None:
    out = case([(6, [-1, 0, 0]), (4, [-1])]).attend(None, FULL)
    assert torch.equal(out[1, 1:], torch.zeros_like(out[1, 1:]))


def test_older_uncommitted_tokens_are_seen_where_they_are_ancestors() -> None:
    #  written before: 0 - 1, 0 - 2;  now node 3 below 2
    tree = case([(5, [-1, 0, 0, 2])])
    whole = tree.attend(None, FULL)
    row = tree.call.rows[0]
    last = TreeCall([replace(row, visible=row.visible[3:])], (), ())
    alone = replace(tree, query=tree.query[:, :, 3:], call=last).attend(None, FULL)
    assert largest(whole[:, 3:] - alone) < 1e-12


def test_the_softcap_is_left_to_the_rung_that_can() -> None:
    tree = case([(3, [-1])])
    operands = (tree.query, tree.keys, tree.values)
    rule = replace(FULL, softcap=5.0)
    taken = [BACKENDS[name].can_attend(*operands, rule=rule) for name in CPU_ORDER]
    assert taken == [False, True]


# ORACLE


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("committed", [0, 1, 255, 256, 257, 4096])
def test_prefixes_of_every_length(rung: str, committed: int) -> None:
    tree = case([(committed, branching(5))], kv_heads=1)
    assert largest(tree.attend(RUNGS[rung], FULL) - reference(tree, FULL)) < 1e-12


@pytest.mark.parametrize("group", [1, 2, 3, 7, 8])
def test_node_0_alone_over_a_long_prefix(group: int) -> None:
    tree = case([(1500, [-1]), (1023, [-1])], group=group)
    assert largest(tree.attend(None, FULL) - reference(tree, FULL)) < 1e-12


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("group", [1, 4, 7, 8])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
def test_groups_and_head_sizes(rung: str, group: int, head_dim: int) -> None:
    tree = case([(33, branching(3)), (7, branching(2))], group=group, head_dim=head_dim)
    assert largest(tree.attend(RUNGS[rung], FULL) - reference(tree, FULL)) < 1e-12


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 17, 32, 128])
def test_trees_of_every_size(rung: str, nodes: int) -> None:
    tree = case([(40, branching(nodes))])
    assert largest(tree.attend(RUNGS[rung], FULL) - reference(tree, FULL)) < 1e-12


RULES = {
    "window": replace(FULL, reach=Reach(window=6)),
    "narrow window": replace(FULL, reach=Reach(window=1)),
    "wide window": replace(FULL, reach=Reach(window=1000)),
    "chunk": replace(FULL, reach=Reach(chunk=8)),
    "softcap": replace(FULL, softcap=1.5),
    "sinks": replace(FULL, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0]).double()),
    "all": LayerRule(Reach(window=9), 0.3, 2.0, torch.tensor([0.5, -1.0, 3.0, 0.0]).double()),
}


@pytest.mark.parametrize("rung", ["flash_cpu", "matmul", "tiled"])
@pytest.mark.parametrize("rule", RULES)
def test_what_a_layer_does_to_its_scores(rung: str, rule: str) -> None:
    tree = case([(21, branching(7)), (6, [-1, 0, 1, 2, 3]), (15, [-1])])
    operands = (tree.query, tree.keys, tree.values)
    chosen = RUNGS[rung]
    if not chosen.can_attend(*operands, rule=RULES[rule]):
        chosen = BACKENDS[CPU_ORDER[-1]]
    assert largest(tree.attend(chosen, RULES[rule]) - reference(tree, RULES[rule])) < 1e-12


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 9), st.booleans()), min_size=1, max_size=3
    ),
    st.sampled_from(sorted(RULES)),
)
def test_ragged_rows(rows: list[tuple[int, int, bool]], rule: str) -> None:
    tree = case(
        [
            (committed, branching(nodes) if is_tree else list(range(-1, nodes - 1)))
            for committed, nodes, is_tree in rows
        ]
    )
    assert largest(tree.attend(None, RULES[rule]) - reference(tree, RULES[rule])) < 1e-12


@pytest.mark.parametrize("rung", RUNGS)
def test_a_mask_too_large_leaves_the_prefix_without_one(
    rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TreeCall, "most_mask", 10)
    tree = case([(50, branching(6)), (0, branching(4))])
    parts = [tree.call.parts(row, Reach(), 2, tree.query) for row in (0, 1)]
    assert [[part.mask is None for part in own] for own in parts] == [[True, False], [False]]
    assert largest(tree.attend(RUNGS[rung], FULL) - reference(tree, FULL)) < 1e-12


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-5), (torch.bfloat16, 0.04), (torch.float16, 0.005)],
)
def test_rounding_in_lower_precision(rung: str, dtype: torch.dtype, bound: float) -> None:
    tree = case([(300, branching(9)), (20, branching(3))])
    sinks = RULES["sinks"].sinks
    assert sinks is not None
    rule = replace(FULL, sinks=sinks.to(dtype))
    rounded = tree.to(dtype)
    out = rounded.attend(RUNGS[rung], rule)
    assert out.dtype == dtype
    exact = reference(rounded.to(torch.float64), replace(FULL, sinks=sinks))
    assert largest(out.double() - exact) < bound


def test_the_mask_for_a_models_own_attention_says_the_same() -> None:
    tree = case([(9, branching(5)), (3, [-1])])
    for reach in (Reach(), Reach(window=4), Reach(chunk=4)):
        mask = tree.call.dense_mask(reach, tree.query)
        for index, row in enumerate(tree.call.rows):
            view = slice(row.start, row.start + row.num_columns)
            own = mask[index, 0, : row.num_nodes, : row.num_columns]
            scores = torch.einsum(
                "hnd,chd->hnc",
                tree.query[index, :, : row.num_nodes],
                tree.keys[view].repeat_interleave(2, 1),
            )
            weights = torch.softmax(scores * FULL.scaling + own, -1)
            expected = torch.einsum(
                "hnc,chd->nhd", weights, tree.values[view].repeat_interleave(2, 1)
            )
            out = tree.attend(None, replace(FULL, reach=reach))[index, : row.num_nodes]
            assert largest(out - expected) < 1e-12
            assert (mask[index, 0, row.num_nodes :, 0] == 0).all(), "padding sees one token"
