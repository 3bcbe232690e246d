"""The conformance suite of tree attention: every backend computes a case or declines it.

    for case in CASES:
        outcome = check(rung, case, dtype=torch.bfloat16, device=torch.device("cuda"))
        outcome.verdict  # "passed", "declined" or "failed"

Run by the tests on a CPU and on a GPU by whoever has one. The reference is softmax(q k) v in
float64, of keys that never lay in a cache.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.attention.call import RowNodes, TreeCall
from mmspec.attention.conformance_cases import CASES, FAR, Case
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule, Rung
from mmspec.attention.tensors import TreeTensors
from mmspec.kernels import settle
from mmspec.kv import KVCache, KVView, ViewSize
from mmspec.kv.policies import LayerState

__all__ = ["BOUNDS", "CASES", "FAR", "Case", "Inputs", "Outcome", "build", "check"]

Verdict = Literal["passed", "declined", "failed"]
# How far from the reference a result may be, as a share of softmax(q k) |v|. Four roundings in half
# precision, each by half the distance of neighbouring numbers at most (weights, the prefix's
# result, the sum of both parts, the result), and as much again for how kernels add up.
BOUNDS = {
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
    torch.float32: 1e-4,
    torch.float64: 1e-11,
}
_SOFTCAP_SLACK = 4  # hardware's tanh is exact to 2**-11 only, and some kernels take it
# What lies between the rows: seen if it is read, but finite, as FlashAttention 3 and 4 want it.
_BETWEEN = 50.0
_SLACK_SLOTS = 7


@dataclass(frozen=True)
class Inputs:
    """A case as a rung is given it, and the keys and values of each row alone."""

    query: Tensor  # (batch, heads, nodes, head_dim)
    keys: Tensor  # (slots, kv_heads, head_dim)
    values: Tensor
    call: TreeCall
    rule: LayerRule
    rows: Sequence[RowNodes]
    row_keys: Sequence[Tensor]  # each (columns, kv_heads, head_dim)
    row_values: Sequence[Tensor]

    @cached_property
    def references(self) -> Sequence[tuple[Tensor, Tensor]]:
        """By row softmax(q k) v and softmax(q k) |v|, each (nodes, heads, head_dim) float64."""
        return [_reference(index, self) for index in range(len(self.rows))]


@dataclass(frozen=True)
class Outcome:
    rung: str
    case: str
    dtype: str
    verdict: Verdict
    error: float | None = None  # the largest, as a share of softmax(q k) |v|
    bound: float | None = None
    reason: str = ""


def check(
    rung: Rung,
    case: Case,
    *,
    dtype: torch.dtype,
    device: torch.device,
    inputs: Inputs | None = None,
) -> Outcome:
    """What the backend makes of the case. An error that it raises is a failure. `inputs`: the
    case's, where they are built already: several backends share them and the reference."""
    name = str(dtype).removeprefix("torch.")
    inputs = inputs or build(case, dtype=dtype, device=device)
    operands = (inputs.query, inputs.keys, inputs.values)
    if case.is_prepared and not rung.is_graph_safe:
        return Outcome(rung.name, case.label, name, "declined", reason="not for a graph")
    if not rung.can_attend(*operands, rule=inputs.rule):
        return Outcome(rung.name, case.label, name, "declined", reason="by its own account")
    bound = BOUNDS[dtype] * (_SOFTCAP_SLACK if case.softcap else 1)
    try:
        out = rung.attend(*operands, call=inputs.call, rule=inputs.rule)
        error, reason = _largest_error(out, inputs)  # waits for what it started
    except Exception as raised:  # whatever a package raises is what the suite is to tell
        reason = f"{type(raised).__name__}: {raised}"
        with suppress(RuntimeError):  # of a lost device the next call will say
            settle(device)
        return Outcome(rung.name, case.label, name, "failed", bound=bound, reason=reason)
    is_right = error <= bound  # not of NaN
    verdict: Verdict = "passed" if is_right else "failed"
    return Outcome(rung.name, case.label, name, verdict, error, bound, reason)


def build(case: Case, *, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The case's tensors, drawn anew and on one kind of device always the same."""
    generator = torch.Generator(device).manual_seed(case.seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    heads = case.kv_heads * case.group
    value_dim = case.value_dim or case.head_dim
    shapes = [_tree(case, row) for row in range(len(case.committed))]
    counts = [len(depths) + c for c, (_, depths) in zip(case.committed, shapes, strict=True)]
    row_keys = [draw(count, case.kv_heads, case.head_dim) for count in counts]
    row_values = [draw(count, case.kv_heads, value_dim) for count in counts]
    if case.is_gathered:
        keys, values, starts, row_keys, row_values = _gathered(case, row_keys, row_values)
    else:
        starts = [case.before + _SLACK_SLOTS]
        for count in counts:
            starts.append(starts[-1] + count + _SLACK_SLOTS)
        keys, values = (
            torch.empty(starts[-1], case.kv_heads, size, dtype=dtype, device=device)
            for size in (case.head_dim, value_dim)
        )
        keys[case.before :], values[case.before :] = _BETWEEN, _BETWEEN
        for start, own_keys, own_values in zip(starts, row_keys, row_values, strict=False):
            keys[start : start + len(own_keys)] = own_keys
            values[start : start + len(own_values)] = own_values
    rows = [
        RowNodes(starts[i], len(row_keys[i]) - len(depths), visible, depths)
        for i, (visible, depths) in enumerate(shapes)
    ]
    batch, width = len(rows), max(case.nodes)
    tensors = None
    if case.is_prepared:  # one row and some nodes more than there are
        batch, width = batch + 1, width + 3
        tail = max(len(depths) for _, depths in shapes) + 5
        tensors = TreeTensors.of(rows, device, batch=batch, nodes=width, tail=tail)
    # As a model's projection leaves it: tokens before heads in memory.
    query = (2 * draw(batch, width, heads, case.head_dim)).transpose(1, 2)
    sinks = 2 * draw(heads) if case.has_sinks else None
    rule = LayerRule(
        Reach(window=case.window, chunk=case.chunk),
        case.head_dim**-0.5,
        case.softcap,
        sinks,
    )
    call = TreeCall([] if tensors else rows, (), (), prepared=tensors)
    call.max_columns = 2 * max(row.num_columns for row in rows) if tensors else call.max_columns
    return Inputs(query, keys, values, call, rule, rows, row_keys, row_values)


def _tree(case: Case, row: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(visible (nodes, tail), depths (tail,)) of a random tree, whose first `older` tokens were
    scored before."""
    random = np.random.default_rng(case.seed + row)
    tail = case.older + case.nodes[row]
    seen, depths = np.eye(tail, dtype=np.bool_), np.zeros(tail, dtype=np.int64)
    for node in range(1, tail):
        parent = int(random.integers(max(node - 6, 0), node))
        seen[node] |= seen[parent]
        depths[node] = depths[parent] + 1
    return seen[case.older :], depths


def _gathered(
    case: Case, row_keys: Sequence[Tensor], row_values: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[int], list[Tensor], list[Tensor]]:
    """Half of the rows' committed tokens in a view, other ones for each KV head, and the tails
    behind them: buffers, first slots, and what is in each row."""
    source = KVCache(1)
    rows = [source.open(len(keys)) for keys in row_keys]
    size = ViewSize(max(case.committed) // 2, recent=8, room=256)
    view = KVView(source, _Spread(), size)
    shown_keys: list[Tensor] = []
    shown_values: list[Tensor] = []
    starts = []
    for row, committed, keys, values in zip(
        rows, case.committed, row_keys, row_values, strict=True
    ):
        source.append(row, ((keys[:committed], values[:committed]),), count=committed)
        view.follow(row)
        assert view.catch_up(row), "the row is long enough for a view"
    layer = view.flat_layers[0]
    for row, committed, keys, values in zip(
        rows, case.committed, row_keys, row_values, strict=True
    ):
        region = view.region(view.row_of(row))
        chosen = _spread(committed, case.kv_heads, region.length)
        for shown, own, put in (
            (shown_keys, keys, layer.keys),
            (shown_values, values, layer.values),
        ):
            heads = [own[chosen[head], head] for head in range(case.kv_heads)]
            shown.append(torch.cat([torch.stack(heads, 1), own[committed:]]))
            first = region.start + region.length
            put[first : first + len(own) - committed] = own[committed:]
        starts.append(region.start)
    return layer.keys, layer.values, starts, shown_keys, shown_values


class _Spread:
    """A policy for the suite: evenly spread tokens, others for each KV head."""

    watched_queries = 0
    refresh_every: int | None = None

    def choose(self, layer: LayerState, budget: int) -> Tensor:
        return _spread(layer.keys.shape[0], layer.keys.shape[1], budget).to(layer.keys.device)


def _spread(length: int, kv_heads: int, budget: int) -> Tensor:
    """(kv_heads, budget), increasing"""
    even = torch.arange(budget) * length // budget
    shifts = torch.arange(kv_heads)[:, None] % max(length // budget, 1)
    return (even + shifts).clamp_(max=length - 1)


def _largest_error(out: Tensor, inputs: Inputs) -> tuple[float, str]:
    """(the largest, where it is)"""
    worst, where = 0.0, ""
    is_padding = torch.ones(out.shape[:2], dtype=torch.bool)
    for index, row in enumerate(inputs.rows):
        is_padding[index, : row.num_nodes] = False
        expected, weight = inputs.references[index]
        own = out[index, : row.num_nodes].double()
        errors = (own - expected).abs() / weight
        error = float(errors.amax()) if bool(torch.isfinite(errors).all()) else float("nan")
        if not error <= worst:
            worst, where = error, f"row {index}, node {int(errors.amax((1, 2)).argmax())}"
    if bool(out[is_padding.to(out.device)].count_nonzero()):
        return float("inf"), "a padding node is not zero"
    return worst, where


def _reference(index: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    row, rule, device = inputs.rows[index], inputs.rule, inputs.query.device
    nodes, group = row.num_nodes, inputs.query.shape[1] // inputs.keys.shape[1]
    positions = np.concatenate([np.arange(row.committed), row.committed + row.depths])
    own = positions[-nodes:, None]
    seen = np.concatenate([np.ones((nodes, row.committed), np.bool_), row.visible], axis=1)
    if rule.reach.window is not None:
        seen &= own - positions < rule.reach.window
    if rule.reach.chunk is not None:
        seen &= own // rule.reach.chunk == positions // rule.reach.chunk
    hidden = torch.from_numpy(~seen).to(device)
    out = []
    for head in range(inputs.query.shape[1]):
        keys = inputs.row_keys[index][:, head // group].double()
        values = inputs.row_values[index][:, head // group].double()
        scores = inputs.query[index, head, :nodes].double() @ keys.T * rule.scaling
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        scores = scores.masked_fill(hidden, float("-inf"))
        if rule.sinks is not None:
            sink = rule.sinks[head].double().expand(nodes, 1)
            scores = torch.cat([scores, sink], dim=1)
        weights = torch.softmax(scores, dim=1)[:, : len(keys)]
        # A sink takes weight that no value has; its share of |v| is in the bound all the same.
        kept = weights.sum(1, keepdim=True).clamp_min(1e-300)
        out.append(torch.stack([weights @ values, weights / kept @ values.abs()]))
    expected, weight = torch.stack(out, dim=2)
    return expected, weight
