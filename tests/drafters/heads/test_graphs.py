"""Heads' forwards, recorded and repeated: the same drafts as without."""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matrix
import pytest
from dflash_heads import unfitted
from graphed import graphed
from matrix import Cell, run_cell

from mmspec.drafters.dflash import DFlash
from mmspec.drafters.dflash.drafter import BoundDFlash
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.glide import BoundGlide
from mmspec.drafters.medusa import BoundMedusa
from mmspec.engine import Engine
from mmspec.requests import Request
from mmspec.target.graphs import ScoreGraphs, StaticInputs

BOUND: dict[str, Any] = {
    "eagle1": BoundEagle,
    "eagle3": BoundEagle,
    "mtp": BoundEagle,
    "glide": BoundGlide,
    "dflash": BoundDFlash,
    "medusa": BoundMedusa,
    "medusa_own": BoundMedusa,
}


@pytest.mark.parametrize(
    ("drafter", "family", "layout", "sampling", "batch"),
    [
        ("eagle1", "llama", "text", "greedy", 3),
        ("eagle3", "llama", "text", "t1", 1),
        ("eagle3", "qwen2_5_vl", "image_middle", "warped", 3),
        ("mtp", "llama", "text", "t1", 3),
        ("mtp", "qwen3_5", "image_middle", "greedy", 1),
        ("glide", "llama", "text", "greedy", 3),
        ("glide", "llama", "text", "t1", 1),
        ("glide", "qwen2_5_vl", "image_middle", "t1", 3),
        ("dflash", "llama", "text", "t1", 3),
        ("dflash", "qwen2_5_vl", "image_middle", "greedy", 1),
        ("medusa", "llama", "text", "t1", 3),
        ("medusa_own", "llama", "text", "warped", 3),
        ("medusa_own", "qwen2_5_vl", "image_middle", "greedy", 1),
    ],
)
def test_recorded_forwards_draft_the_same(
    drafter: str,
    family: str,
    layout: str,
    sampling: str,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = Cell(family, drafter, sampling, batch, layout)
    bound, made = BOUND[drafter], list[ScoreGraphs]()
    right = bound.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        right(self, *args, **options)
        made.extend(self.recorded)

    monkeypatch.setattr(bound, "__init__", noted)
    expected = run_cell(cell)
    assert not made, "on a CPU nothing is recorded"
    with graphed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = run_cell(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted == expected.accepted > 0
    (graphs,) = made
    assert graphs.info.replayed > 5 and graphs.info.num_graphs > 0
    assert not graphs.info.given_up


@pytest.mark.parametrize(("block", "is_recorded"), [(17, True), (64, True), (65, False)])
def test_long_blocks_are_recorded(block: int, is_recorded: bool) -> None:
    model = matrix.model_of("llama", "float64")
    head = unfitted(model, block_size=block, draft_vocab_size=30)
    (request, _), results = asked_of("dflash"), []
    for recording in (nullcontext(), graphed()):
        with recording:
            engine = engine_with(DFlash(head, min_confidence=0.0))
            results.append(engine.generate(request))
            (bound,) = engine.drafters
            assert isinstance(bound, BoundDFlash)
            replayed = sum(graphs.info.replayed for graphs in bound.recorded)
    assert results[0].tokens == results[1].tokens
    assert results[0].stats.by_drafter == results[1].stats.by_drafter
    assert (replayed > 5) == is_recorded


def asked_of(name: str) -> tuple[Request, Any]:
    """A request of the matrix, and the drafter of this name for it."""
    cell = Cell("llama", name, "greedy", 1, "text")
    (request,) = matrix._requests(cell)
    plain = [matrix._plain(cell.family, cell.dtype, cell.sampling, "text", 0)]
    return request, matrix._drafter(name, cell, [request], plain, Path())


def engine_with(drafter: Any) -> Engine:
    return matrix._engine("llama", "float64", 20, [drafter])


@pytest.mark.parametrize("drafter", ["glide", "medusa_own"])
def test_an_engine_tells_of_its_heads_graphs(drafter: str) -> None:
    with graphed() as seen:
        request, made = asked_of(drafter)
        engine = engine_with(made)
        engine.generate(request)
        told = engine.graph_info
    assert told is not None and len(seen.graphs) == 2, "the target's and the heads'"
    for count in ("recorded", "replayed", "eager", "num_graphs"):
        own = [getattr(graphs.info, count) for graphs in seen.graphs]
        assert getattr(told, count) == sum(own) and min(own) > 0
    other = engine_with(made)
    other.generate(request)
    assert other.graph_info is None, "on a CPU nothing is recorded"


@pytest.mark.parametrize(
    "drafter",
    ["eagle1", "glide", "dflash", "medusa_own", "draft_same", "compressed_window", "cascade"],
)
def test_a_cleared_cache_frees_what_drafters_recorded(drafter: str) -> None:
    with graphed() as seen:
        request, made = asked_of(drafter)
        engine = engine_with(made)
        expected = engine.generate(request)
        kept = [graphs.info.num_graphs for graphs in seen.graphs]
        engine.clear_cache()
        freed = [graphs.info.num_graphs for graphs in seen.graphs]
        again = engine.generate(request)
    assert all(kept) and not any(freed)
    assert again.tokens == expected.tokens
    assert again.stats.by_drafter == expected.stats.by_drafter
    (bound,) = engine.drafters
    pool = getattr(getattr(bound, "cache", None), "pool", None)
    if pool is not None:
        engine.clear_cache()
        assert not pool.num_bytes


def test_what_is_seen_of_the_target_is_told_at_each_replay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without this, the drafts could agree for want of a head that looks."""
    cell = Cell("llama", "glide", "greedy", 3, "text")
    expected, fill, filled = run_cell(cell), StaticInputs.fill, set[int]()

    def once(self: StaticInputs, call: Any) -> None:
        if not call.rows and id(self) in filled:  # what is seen alone writes to no row
            return
        filled.add(id(self))
        fill(self, call)

    monkeypatch.setattr(StaticInputs, "fill", once)
    with graphed():
        outcome = run_cell(cell)
    assert filled and not outcome.mismatches
    assert outcome.accepted != expected.accepted
