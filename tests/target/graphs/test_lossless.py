"""Recorded calls give the tokens of plain decoding, and a value that was recorded is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from graphed import run_graphed
from matrix import Cell

from mmspec.attention import TreeCall
from mmspec.errors import GraphWarning
from mmspec.kv import FlatLayer, WriteSlots
from mmspec.target import Target
from mmspec.target.graphs import Computed, ScoreCall, ScoreGraphs, StaticInputs

Patch = Callable[[pytest.MonkeyPatch], None]


def cell(family: str, drafter: str, sampling: str, batch: int, layout: str, **rest: str) -> Cell:
    return Cell(family, drafter, sampling, batch, layout, **rest)  # type: ignore[arg-type]


CELLS = [
    cell("llama", "prompt_lookup", "t1", 3, "text"),
    cell("llama", "draft_same", "greedy", 3, "text"),
    cell("llama", "compressed_snapkv", "t1", 3, "text"),  # the queries are read by a policy
    cell("llama", "layer_skip", "t1", 1, "text"),
    cell("llama", "lookahead", "t1", 3, "text"),
    cell("qwen2_sliding", "cascade", "greedy", 3, "text"),
    cell("gemma3_text", "prompt_lookup", "warped", 3, "text", reuse="chunks_and_prefixes"),
    cell("gpt2", "draft_padded", "t1", 3, "text"),
    cell("llava", "retrieval_dense", "t1", 1, "image_first", controller="auto"),  # hidden states
    cell("qwen2_5_vl", "adversary", "t1", 3, "image_middle"),
    cell("qwen3_vl", "compressed_visual", "greedy", 3, "image_first"),
    cell("qwen3_5", "prompt_lookup", "t1", 3, "image_middle", reuse="chunks_and_prefixes"),
    cell("qwen3_5", "medusa", "greedy", 3, "text"),  # trees
    cell("lfm2", "compressed_window", "warped", 3, "text"),  # rows of a view, with the row's states
    cell("granite_hybrid", "draft_same", "t1", 3, "text"),  # rows that are cut
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_recorded_calls_give_the_plain_tokens(cell: Cell) -> None:
    outcome, graphed = run_graphed(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert not graphed.given_up
    assert graphed.replayed > 0, "nothing was replayed: this cell proves nothing"


# Mutants: each bakes in what must be read anew.


def keys_are_written_where_they_were(patch: pytest.MonkeyPatch) -> None:
    def write(self: WriteSlots, keys: Any, values: Any, *states: Any) -> None:
        first, counts = ([int(value) for value in t] for t in (self.first, self.counts))
        for buffer, own in zip((keys, values), states, strict=True):
            for row, (start, count) in enumerate(zip(first, counts, strict=True)):
                buffer[start : start + count] = own[row, :, :count].transpose(0, 1)

    patch.setattr(WriteSlots, "write", write)


def a_length_is_read_in_python(patch: pytest.MonkeyPatch) -> None:
    update = FlatLayer.update

    def shifted(self: FlatLayer, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.plan
        assert plan is not None
        if plan.captured is not None:
            first = [start + end for start, end in zip(plan.starts, plan.lengths, strict=True)]
            told = plan.captured.first.clone()
            told[: len(first)] = torch.tensor(first)
            plan = replace(plan, captured=WriteSlots(told, plan.captured.counts))
            own, self.plan = self.plan, plan
            try:
                return update(self, keys, values, *args, **kwargs)
            finally:
                self.plan = own
        return update(self, keys, values, *args, **kwargs)

    patch.setattr(FlatLayer, "update", shifted)


def positions_are_those_of_the_call(patch: pytest.MonkeyPatch) -> None:
    compute = Target._compute

    def wrong(self: Target, given: StaticInputs, call: ScoreCall) -> Computed:
        static, batch = given.positions, call.ids.shape[0]
        given.positions = torch.zeros_like(static)
        given.positions[..., :batch, : call.ids.shape[1]] = call.positions
        try:
            return compute(self, given, call)
        finally:
            given.positions = static

    patch.setattr(Target, "_compute", wrong)


def attention_is_told_of_the_call(patch: pytest.MonkeyPatch) -> None:
    right = StaticInputs.tree_call

    def wrong(self: StaticInputs, call: ScoreCall, **options: Any) -> TreeCall:
        made = right(self, call, **options)
        assert made.prepared is not None
        made.prepared = replace(made.prepared, committed=made.prepared.committed.clone() * 1)
        made.prepared.committed[: len(call.plan.lengths)] = torch.tensor(
            [row.committed for row in call.tree.rows], dtype=torch.int32
        )
        return made

    patch.setattr(StaticInputs, "tree_call", wrong)


def tokens_are_those_of_the_call(patch: pytest.MonkeyPatch) -> None:
    compute = Target._compute

    def wrong(self: Target, given: StaticInputs, call: ScoreCall) -> Computed:
        static, batch = given.ids, call.ids.shape[0]
        given.ids = torch.zeros_like(static)
        given.ids[:batch, : call.ids.shape[1]] = call.ids
        try:
            return compute(self, given, call)
        finally:
            given.ids = static

    patch.setattr(Target, "_compute", wrong)


def states_are_those_of_the_call(patch: pytest.MonkeyPatch) -> None:
    compute = Target._compute

    def wrong(self: Target, given: StaticInputs, call: ScoreCall) -> Computed:
        static, own = given.levels, StaticInputs(given.bucket, torch.device("cpu"))
        own.fill(call)
        given.levels = own.levels
        try:
            return compute(self, given, call)
        finally:
            given.levels = static

    patch.setattr(Target, "_compute", wrong)


BAKED: list[Patch] = [
    tokens_are_those_of_the_call,
    a_length_is_read_in_python,
    positions_are_those_of_the_call,
    attention_is_told_of_the_call,
    states_are_those_of_the_call,
]
CAUGHT = cell("llama", "prompt_lookup", "t1", 3, "text")
RUNNING = cell("qwen3_5", "prompt_lookup", "t1", 3, "text")


def caught(mutant: Patch) -> Cell:
    return RUNNING if mutant is states_are_those_of_the_call else CAUGHT


def unproven(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ScoreGraphs, "_agrees", lambda *_: True)


@pytest.mark.parametrize("mutant", BAKED, ids=lambda mutant: mutant.__name__)
def test_a_value_that_was_baked_in_changes_the_tokens(
    mutant: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    unproven(monkeypatch)
    outcome, _ = run_graphed(caught(mutant))
    assert outcome.mismatches, "the cells above would not see this"


@pytest.mark.parametrize("mutant", BAKED, ids=lambda mutant: mutant.__name__)
def test_a_graph_is_given_up_before_a_baked_value_changes_a_token(
    mutant: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.warns(GraphWarning, match="a replay was off by"):
        outcome, graphed = run_graphed(caught(mutant))
    assert graphed.given_up and graphed.replayed == 0
    assert not outcome.mismatches, "; ".join(outcome.mismatches)


def test_a_forward_that_waits_for_the_device_is_given_up_before_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys_are_written_where_they_were(monkeypatch)
    with pytest.warns(GraphWarning, match=r"looks at values on the device.*cuda_graphs=never"):
        outcome, graphed = run_graphed(CAUGHT)
    assert graphed.given_up and graphed.replayed == 0
    assert not outcome.mismatches, "; ".join(outcome.mismatches)


def test_without_attention_for_graphs_a_model_goes_on_without() -> None:
    with pytest.warns(GraphWarning, match="attention"):
        outcome, graphed = run_graphed(CAUGHT, None)
    assert graphed.given_up and graphed.replayed == 0
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
