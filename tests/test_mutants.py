"""The exactness matrix can fail: each of these faults, put into the code, is caught by a cell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import matrix
import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import Cell, model_of, run_cell
from torch import Tensor

import mmspec.sampling
import mmspec.target.target
from mmspec.attention import Reach, RowNodes, TreeCall
from mmspec.attention.call import Part
from mmspec.attention.chunk import TileCall
from mmspec.encoders.media import MediaItem
from mmspec.engine import Engine
from mmspec.errors import ModelError
from mmspec.kv import KVCache, RunningStates, StateBlock
from mmspec.kv.state_slots import Held
from mmspec.row import Row
from mmspec.state import Placement, Scores, Verdict
from mmspec.target import Target
from mmspec.target.attached import Attention
from mmspec.target.cuts import Cuts
from mmspec.target.probe import probe
from mmspec.tree import TokenTree
from mmspec.verify import Verifier

Patch = Callable[[pytest.MonkeyPatch], None]


def siblings_see_each_other(patch: pytest.MonkeyPatch) -> None:
    """Wrong mask: every node sees all nodes before it."""

    def causal(tree: TokenTree) -> object:
        return torch.ones(tree.num_nodes, tree.num_nodes).tril().bool().numpy()

    patch.setattr(TokenTree, "ancestor_mask", property(causal))


def prefix_is_cut(patch: pytest.MonkeyPatch) -> None:
    """Wrong mask: the last committed token is not seen."""
    rule = mmspec.target.target.MaskRule
    build = rule.build

    def shorter(
        self: object, rows: Sequence[RowNodes], dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        masks = build(self, rows, dtype)  # type: ignore[arg-type]
        for mask in masks.values() if isinstance(masks, dict) else (masks,):
            for number, row in enumerate(rows):
                mask[number, :, :, row.committed - 1] = torch.finfo(dtype).min
        return masks

    patch.setattr(rule, "build", shorter)
    prefix_is_cut_in_tree_attention(patch)


def prefix_is_cut_in_tree_attention(patch: pytest.MonkeyPatch) -> None:
    """Wrong slots: the row's first token is not seen."""
    first = RowNodes.first_column

    def later(self: RowNodes, reach: Reach) -> int:
        return min(first(self, reach) + 1, self.committed)

    patch.setattr(RowNodes, "first_column", later)


def rows_read_the_first_rows_slots(patch: pytest.MonkeyPatch) -> None:
    """Wrong slots: every row attends to the region of the row that was opened first."""
    right = TreeCall._cut

    def wrong(self: TreeCall, row: RowNodes, reach: Reach, group: int, like: Tensor) -> list[Part]:
        return right(self, replace(row, start=self.rows[0].start), reach, group, like)

    patch.setattr(TreeCall, "_cut", wrong)


def groups_are_shuffled(patch: pytest.MonkeyPatch) -> None:
    """Wrong fold: the mask is laid out as if the nodes' heads lay side by side."""
    right = TreeCall.parts

    def wrong(self: TreeCall, row: int, reach: Reach, group: int, like: Tensor) -> list[Part]:
        nodes = self.rows[row].num_nodes
        return [
            part._replace(mask=part.mask[:nodes].repeat_interleave(group, 0))
            if part.mask is not None
            else part
            for part in right(self, row, reach, group, like)
        ]

    patch.setattr(TreeCall, "parts", wrong)


def positions_count_nodes(patch: pytest.MonkeyPatch) -> None:
    """Wrong position: a node's index in place of its depth."""
    right = mmspec.target.target._node_positions

    def wrong(
        trees: Sequence[TokenTree],
        lengths: Sequence[int],
        placements: Sequence[Placement],
        written: Sequence[int],
    ) -> Tensor:
        chains = [
            TokenTree.chain(t.tokens[0], t.tokens[1:], t.confidence[1:], "mutant") for t in trees
        ]
        return right(chains, lengths, placements, written)

    patch.setattr(mmspec.target.target, "_node_positions", wrong)


def commit_takes_the_first_nodes(patch: pytest.MonkeyPatch) -> None:
    """Wrong commit: as many nodes as were accepted, but not the accepted ones."""
    right = KVCache.commit

    def wrong(self: KVCache, paths: Mapping[int, Sequence[int]]) -> None:
        right(self, {row: range(len(path)) for row, path in paths.items()})

    patch.setattr(KVCache, "commit", wrong)


def commit_keeps_one_too_many(patch: pytest.MonkeyPatch) -> None:
    """Wrong commit: a node after the accepted path stays, where there is one."""
    right = KVCache.commit

    def wrong(self: KVCache, paths: Mapping[int, Sequence[int]]) -> None:
        longer = {
            row: [*path, path[-1] + 1] if path[-1] + 1 < self._written[row] else path
            for row, path in paths.items()
        }
        right(self, longer)

    patch.setattr(KVCache, "commit", wrong)


def noise_is_the_steps(patch: pytest.MonkeyPatch) -> None:
    """Wrong noise position: all tokens of a step share the noise of its first."""
    gumbel, verify = mmspec.sampling.gumbel, Row.verify
    step_start: dict[int, int] = {}

    def remember(self: Row, rule: Verifier, tree: TokenTree, scores: Scores) -> Verdict | None:
        step_start[self.sampler.seed] = self.sampler.num_chosen
        return verify(self, rule, tree, scores)

    def wrong(seed: int, position: int, vocab_size: int, **options: object) -> Tensor:
        return gumbel(seed, step_start.get(seed, position), vocab_size, **options)  # type: ignore[arg-type]

    patch.setattr(Row, "verify", remember)
    patch.setattr(mmspec.sampling, "gumbel", wrong)


TREE_ATTENTION_FAULTS: tuple[Patch, ...] = (
    prefix_is_cut_in_tree_attention,
    rows_read_the_first_rows_slots,
    groups_are_shuffled,
)


def an_image_is_known_by_its_tokens(patch: pytest.MonkeyPatch) -> None:
    """Wrong reuse: the KV of another image behind the same placeholders."""
    patch.setattr(MediaItem, "digest", b"")


def a_block_is_cut(patch: pytest.MonkeyPatch) -> None:
    """Wrong border: the first part of an image whose tokens see each other is computed alone."""
    patch.setattr("mmspec.target.target.prompt_cuts", lambda model: Cuts())


def a_chunk_misses_the_token_before_it(patch: pytest.MonkeyPatch) -> None:
    """Wrong mask of a chunk, and wrong tiles: the last committed token is not seen. The probe,
    which would see that and cut no prompt, looks away."""
    patch.setattr(mmspec.target.probe, "_reason_against_cuts", lambda *_: None)
    rule = mmspec.target.target.MaskRule
    build = rule.build_chunk

    def blind(
        self: object,
        length: int,
        count: int,
        blocks: object,
        dtype: torch.dtype,
        *,
        device: torch.device,
    ) -> Tensor | dict[str, Tensor]:
        masks = build(self, length, count, blocks, dtype, device=device)  # type: ignore[arg-type]
        for mask in masks.values() if isinstance(masks, dict) else (masks,):
            mask[..., length - 1] = torch.finfo(dtype).min
        return masks

    patch.setattr(rule, "build_chunk", blind)
    cut = TileCall._cut

    def shorter(
        self: TileCall, row: RowNodes, reach: Reach, group: int, like: Tensor
    ) -> list[Part]:
        parts = cut(self, row, reach, group, like)
        first, last = parts[0].first, row.start + row.committed - 1
        if parts[0].mask is not None:
            parts[0].mask[:, last - first] = torch.finfo(like.dtype).min
        elif first < last:  # the kernel takes no part without keys
            parts[0] = parts[0]._replace(stop=last)
        return parts

    patch.setattr(TileCall, "_cut", shorter)


def a_prompt_begins_with_no_state(patch: pytest.MonkeyPatch) -> None:
    """Wrong reuse: the keys of a stored beginning, without the running state behind it."""
    patch.setattr(RunningStates, "hold", lambda self, row, held: self.open(row))


def a_state_is_that_of_another_length(patch: pytest.MonkeyPatch) -> None:
    """Wrong reuse: the first state that was taken up, wherever a text goes on."""
    right = KVCache.resume
    first: dict[int, StateBlock] = {}

    def wrong(self: KVCache, row: int, state: StateBlock) -> None:
        right(self, row, first.setdefault(id(self), state))

    patch.setattr(KVCache, "resume", wrong)


def a_chunk_begins_with_no_state(patch: pytest.MonkeyPatch) -> None:
    """Wrong prefill: the state before a chunk is forgotten."""
    patch.setattr(mmspec.target.probe, "_reason_against_cuts", lambda *_: None)
    right = RunningStates.held

    def forgotten(self: RunningStates, row: int) -> Held | None:
        found = right(self, row)
        return None if self._call is not None and not self.is_by_levels else found

    patch.setattr(RunningStates, "held", forgotten)


REUSE_FAULTS = (
    (a_prompt_begins_with_no_state, "qwen3_next", "text"),
    (a_state_is_that_of_another_length, "qwen3_5", "image_middle"),
    (a_chunk_begins_with_no_state, "granite_hybrid", "text"),
    (an_image_is_known_by_its_tokens, "llava", "image_first"),
    (an_image_is_known_by_its_tokens, "qwen2_vl", "image_middle"),
    (an_image_is_known_by_its_tokens, "gemma3", "image_first"),
    (a_block_is_cut, "gemma3", "image_middle"),
    (a_chunk_misses_the_token_before_it, "llama", "text"),
    (a_chunk_misses_the_token_before_it, "gemma3_text", "text"),
)


@pytest.mark.parametrize(("fault", "family", "layout"), REUSE_FAULTS)
def test_the_fault_of_reuse_is_caught(
    fault: Patch, family: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(family, "adversary", "t1", 3, layout, reuse="chunks_and_prefixes")
    assert not run_cell(cell).mismatches
    fault(monkeypatch)
    monkeypatch.setattr(matrix, "_probed", matrix._probed.__wrapped__)  # where prompts are cut
    assert run_cell(cell).mismatches


FAULTS: tuple[Patch, ...] = (
    siblings_see_each_other,
    prefix_is_cut,
    positions_count_nodes,
    commit_takes_the_first_nodes,
    commit_keeps_one_too_many,
    noise_is_the_steps,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("family", ["llama", "qwen2_vl"])
def test_the_fault_is_caught(fault: Patch, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = "text" if family == "llama" else "image_middle"
    cell = Cell(family, "adversary", "t1", 3, layout)
    assert not run_cell(cell).mismatches  # also fills the cache of plain texts, without the fault
    if fault is prefix_is_cut:  # plain decoding suffers alike: only an outside reference tells
        fault(monkeypatch)
        assert _differs_from_transformers(family)
        return
    for attention in ("tree", "model"):
        with monkeypatch.context() as patch:
            target = _unprobed(model_of(family, "float64"), attention)
            patch.setattr("mmspec.build.probed_target", lambda *_, target=target: (target, "tree"))
            fault(patch)
            assert run_cell(cell).mismatches, f"attention={attention}"


def test_shuffled_groups_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("llama", "adversary", "t1", 3, "text")
    assert not run_cell(cell).mismatches
    target = _unprobed(model_of("llama", "float64"), "tree")
    monkeypatch.setattr("mmspec.build.probed_target", lambda *_: (target, "tree"))
    groups_are_shuffled(monkeypatch)
    assert run_cell(cell).mismatches


@pytest.mark.parametrize("fault", TREE_ATTENTION_FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_tree_attention_steps_down_to_the_models_own(
    fault: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama", "float64")
    assert probe(model)[1].attention == "tree"
    fault(monkeypatch)
    target, report = probe(model)
    assert (report.shape, report.attention, target.attachments.attention) == (
        "tree",
        "model",
        "model",
    )
    assert report.attention_failure.startswith("off by")


@pytest.mark.parametrize(
    "fault",
    [siblings_see_each_other, prefix_is_cut, positions_count_nodes],
    ids=lambda f: f.__name__,
)
def test_the_probe_finds_faults_of_the_model_at_load(
    fault: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama", "float64")
    assert probe(model)[1].shape == "tree"
    fault(monkeypatch)
    try:
        shape = probe(model)[1].shape
    except ModelError:
        shape = "refused"
    assert shape != "tree"


def _unprobed(model: object, attention: Attention = "model") -> Target:
    return Target(model, attention=attention)  # type: ignore[arg-type]


def _differs_from_transformers(family: str) -> bool:
    model = model_of(family, "float64")
    inputs = prompt_inputs(FAMILIES[family], "text", num_text_tokens=20)
    expected = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, 20:].tolist()
    attentions: tuple[Attention, ...] = ("tree", "model")
    engines = [Engine(_unprobed(model, attention), None) for attention in attentions]
    texts = [e.generate(inputs, max_new_tokens=16, temperature=0.0).tokens for e in engines]
    return all(list(text) != expected for text in texts)
