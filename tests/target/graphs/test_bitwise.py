"""Bitwise mode by graphs: replayed calls give the bits of those that run launch by launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import interpreted
import matrix
import pytest
import torch
from families import FAMILIES, prompt_inputs
from graphed import BY_TENSORS, Attend, Graphed, graphed
from matrix import Cell, Outcome, run_cell
from tape import TapeRecorder
from torch import Tensor

import mmspec.attention.bitwise
import mmspec.attention.interface
import mmspec.kv.cache
import mmspec.kv.layer
import mmspec.kv.slots
import mmspec.target.graphs.bucket
from mmspec.attention import LayerRule, TreeCall
from mmspec.attention.tensors import TreeTensors
from mmspec.errors import GraphWarning
from mmspec.inputs import from_inputs
from mmspec.target.graphs import Recording
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

assert interpreted
_POSITIONS = 192  # more than any text here has


def by_tensors(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    """What the kernel does, of what it reads, in operations that a tape repeats: each node's keys
    by their positions, its sums in one order."""
    if call.paths is None:  # the probe's, and a draft's
        return BY_TENSORS(query, keys, values, call=call, rule=rule)
    tensors = call.tensors(query.device)
    ancestors = call.paths.ancestors(tensors)
    batch, heads, nodes, _ = query.shape
    group = heads // keys.shape[1]
    position = torch.arange(_POSITIONS).view(1, 1, -1)
    committed = tensors.committed.view(-1, 1, 1)
    depth = (position - committed).expand(batch, nodes, -1)
    is_known = (depth >= 0) & (depth < nodes)
    behind = ancestors.long().gather(2, depth.clamp(0, nodes - 1))
    is_there = (depth < 0) | (is_known & (behind >= 0))
    slot = tensors.starts.view(-1, 1, 1) + torch.where(depth < 0, position, committed + behind)
    own = (tensors.committed.unsqueeze(1) + tensors.depths[:, :nodes]).unsqueeze(2)
    is_real = (torch.arange(nodes) < tensors.num_nodes.unsqueeze(1)).unsqueeze(2)
    seen = is_there & (position <= own) & is_real
    if rule.reach.window is not None:
        seen = seen & (own - position < rule.reach.window)
    key, value = (  # (batch, heads, nodes, positions, head_dim)
        buffer[torch.where(seen, slot, 0)]
        .permute(0, 3, 1, 2, 4)
        .repeat_interleave(group, dim=1)
        .float()
        for buffer in (keys, values)
    )
    scores = (query.float().unsqueeze(3) * key).sum(-1) * rule.scaling
    weights = scores.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1).nan_to_num(0.0)
    out = (weights.unsqueeze(3) * value.transpose(3, 4).contiguous()).sum(-1)
    return out.transpose(1, 2).to(query.dtype)


def by_kernel(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Tensor:
    if call.paths is None:
        return BY_TENSORS(query, keys, values, call=call, rule=rule)
    kernel = pytest.importorskip("mmspec.attention.kernels.bitwise")
    tensors = call.tensors(query.device)
    ancestors = call.paths.ancestors(tensors)
    columns = call.max_columns
    return kernel.attend(  # type: ignore[no-any-return]
        query, keys, values, tensors, ancestors, columns=columns, rule=rule
    )


@pytest.fixture(autouse=True)
def borders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Texts that cross the borders of blocks of positions, of segments and of buckets; what they
    were before is forgotten."""
    kernel = pytest.importorskip("mmspec.attention.kernels.bitwise")
    monkeypatch.setattr(kernel, "_SEGMENT", 64)
    monkeypatch.setattr(matrix, "PROMPT_TOKENS", (52, 117, 60))
    matrix._plain.cache_clear()
    yield
    matrix._plain.cache_clear()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmspec.attention.interface, "tree_attention", attend)
        yield


def run(cell: Cell, attend: Attend = by_tensors, max_nodes: int = 9) -> tuple[Outcome, Graphed]:
    """The cell by graphs, against plain decoding launch by launch."""
    common = (cell.exactness, max_nodes, cell.reuse)
    with attending(attend):
        for place in matrix._places(cell):
            matrix._plain(cell.family, cell.dtype, cell.sampling, *place, *common)
    with graphed(attend) as seen:
        return run_cell(cell, max_nodes=max_nodes), seen


def check(outcome: Outcome, seen: Graphed) -> None:
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted > 0, "no drafted token was accepted: this cell proves nothing"
    assert not seen.given_up
    assert seen.replayed > 0, "nothing was replayed: this cell proves nothing"


def cell(family: str, drafter: str, sampling: str, batch: int, dtype: str, **rest: str) -> Cell:
    layout = rest.pop("layout", "text")
    made = partial(Cell, exactness="bitwise", dtype=dtype)  # type: ignore[arg-type]
    return made(family, drafter, sampling, batch, layout, **rest)  # type: ignore[arg-type]


CELLS = [
    cell("llama", "adversary", "greedy", 3, "bfloat16"),  # trees
    cell("llama", "draft_same", "t1", 1, "float32", reuse="chunks"),  # chains
    cell("llama", "compressed_snapkv", "t1", 3, "float32"),  # the queries are read by a policy
    cell("qwen2_sliding", "adversary+draft_same", "t1", 1, "bfloat16"),
    cell("qwen2_sliding", "cascade", "greedy", 3, "float32", reuse="chunks_and_prefixes"),
    cell("qwen2_5_vl", "retrieval_dense", "greedy", 3, "bfloat16", layout="image_middle"),  # taps
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_replayed_calls_have_the_bits_of_plain_decoding_launch_by_launch(cell: Cell) -> None:
    check(*run(cell))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_so_do_replayed_kernels(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "NEW_TOKENS", 15)
    check(*run(cell("llama", "adversary", "greedy", 3, dtype), by_kernel, max_nodes=5))


#      0
#     / \
#    1   2
#    |
#    3
FORK = TokenTree((20, 21, 22, 23), (-1, 0, 0, 1), (1.0,) * 4, ("",) * 4)
CHAIN = TokenTree((30, 31), (-1, 0), (1.0,) * 2, ("",) * 2)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_all_kernels_of_a_call_are_replayed_to_the_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FAMILIES["llama"].build(dtype)
    probed, plain = (probe(model)[0] for _ in range(2))
    probed.use_graphs(TapeRecorder())
    for module in (mmspec.kv.slots, mmspec.kv.layer, mmspec.kv.cache):
        monkeypatch.setattr(module, "has_kernels", lambda device: True)
    monkeypatch.setattr(mmspec.attention.interface, "tree_attention", by_kernel)
    logits = []
    for target in (probed.bitwise(rows=2, nodes=4), plain.bitwise(rows=2, nodes=4)):
        cache, places = target.new_cache(), []
        for row, length in enumerate((62, 9)):
            inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=row)
            prompt = from_inputs(inputs, model.config)
            places.append(target.prefill(prompt, cache, cache.open(length + 40)).placement)
        found = []
        for path, *trees in (
            ((0,), CHAIN, CHAIN),
            ((0, 1), CHAIN, FORK),
            ((0, 1), FORK, CHAIN),
            ((0, 1, 3), FORK),
            ((0,), FORK),
        ):
            scores = target.score(trees, cache, places[: len(trees)])
            found += [score.logits.clone() for score in scores]
            cache.commit({place.row: path for place in places[: len(trees)]})
        logits.append(found)
        if target.graphs is not None:
            assert target.graphs.info.replayed == 4 and target.graphs.info.recorded == 1
    assert all(torch.equal(*pair) for pair in zip(*logits, strict=True))


def test_one_graph_takes_every_tree_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bucket of context: 3 rows at first, 1 at last; trees of 1 to 10 nodes."""
    recorded = []
    for least in (64, 512):
        with graphed(by_tensors) as seen:
            monkeypatch.setattr(mmspec.target.graphs.bucket, "_LEAST_COLUMNS", least)
            engine = matrix._engine("llama", "bfloat16", 9, [matrix._lookup()], exactness="bitwise")
            requests = matrix._requests(CELLS[0])
            for _ in range(2):
                engine.generate(requests)
        assert not seen.given_up
        assert engine.graph_info is not None and engine.graph_info.replayed > 10
        recorded.append(engine.graph_info.recorded)
    assert recorded[0] > recorded[1] == 1


# Mutants


def ancestors_are_those_of_the_call(patch: pytest.MonkeyPatch) -> None:
    right = mmspec.attention.bitwise.ancestors_of

    def baked(tensors: TreeTensors) -> Tensor:
        return torch.tensor(right(tensors).tolist(), dtype=torch.int32)

    patch.setattr(mmspec.attention.bitwise, "ancestors_of", baked)


def a_replay_rounds_otherwise(patch: pytest.MonkeyPatch) -> None:
    """As a library would that takes another algorithm while a graph is recorded."""
    record = TapeRecorder.record

    def otherwise(self: TapeRecorder, forward: Callable[[], Any]) -> Recording:
        made = record(self, forward)
        logits = made.computed.logits

        def replay() -> None:
            made.replay()
            logits[0, 0, 0] = torch.nextafter(logits[0, 0, 0], torch.tensor(torch.inf).to(logits))

        return Recording(made.computed, replay)

    patch.setattr(TapeRecorder, "record", otherwise)


@pytest.mark.parametrize("mutant", [ancestors_are_those_of_the_call, a_replay_rounds_otherwise])
def test_a_graph_that_changes_a_bit_is_given_up(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.warns(GraphWarning):
        outcome, seen = run(cell("llama", "adversary", "greedy", 1, "float32"))
    assert seen.given_up
    assert not outcome.mismatches, "; ".join(outcome.mismatches)


def test_attention_that_reads_rows_on_the_cpu_goes_on_without_graphs() -> None:
    """As on a GPU without triton."""
    with pytest.warns(GraphWarning, match="reads its rows on the CPU"):
        with graphed(None) as seen:
            chosen = cell("llama", "adversary", "greedy", 1, "bfloat16")
            outcome = run_cell(chosen, max_nodes=9)
    assert seen.given_up and seen.replayed == 0
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
