"""Pieces: processors that sum up a row of scores always see one shape."""

import matrix
import pytest
import torch
from matrix import Cell, run_cell
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import mmspec.foresight
import mmspec.pieces
from mmspec.logprobs import _likeliest
from mmspec.pieces import in_pieces, process, sums

SUMMING: list[LogitsProcessor] = [
    TopPLogitsWarper(0.8),
    MinPLogitsWarper(0.2),
    TypicalLogitsWarper(0.7),
    EpsilonLogitsWarper(0.02),
    EtaLogitsWarper(0.02, device="cpu"),
    LogitNormalization(),
]
_sizes = mmspec.pieces._sizes


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmspec.pieces, "_sizes", lambda _, vocab: _sizes("cuda", vocab))


class Shapes:
    """Stands for a processor, and holds what it was called with."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        assert ids.shape[0] == scores.shape[0] and scores.is_contiguous()
        self.seen.add(tuple(scores.shape))
        return scores.mul_(2.0)


@pytest.mark.parametrize(("vocab", "rows"), [(32, 16), (33, 2), (34, 2)])
def test_every_call_has_one_shape(as_on_a_gpu: None, vocab: int, rows: int) -> None:
    processor = Shapes()
    for count in (1, 2, 15, 16, 17, 40):
        scores = torch.randn(count, vocab)
        kept = scores.clone()
        found = in_pieces(processor, scores)  # type: ignore[arg-type]
        assert torch.equal(found, kept * 2.0) and torch.equal(scores, kept)
    assert processor.seen == {(rows, vocab)}


@pytest.mark.parametrize("processor", SUMMING, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("vocab", [32, 33])
def test_a_piece_says_what_each_node_is_told_alone(
    as_on_a_gpu: None, processor: LogitsProcessor, vocab: int
) -> None:
    assert sums(processor)
    scores, nothing = torch.randn(21, vocab) * 3, torch.empty(1, 0, dtype=torch.long)
    alone = torch.cat([processor(nothing, row.unsqueeze(0).clone()) for row in scores])
    torch.testing.assert_close(in_pieces(processor, scores), alone)


def test_others_are_called_for_all_at_once(as_on_a_gpu: None) -> None:
    temperature, scores = TemperatureLogitsWarper(0.5), torch.randn(3, 8)
    assert not sums(temperature)
    found = process(LogitsProcessorList([temperature]), torch.empty(3, 0), scores)
    assert torch.equal(found, scores / 0.5)


_warp = TopPLogitsWarper.__call__


def _by_number(self: TopPLogitsWarper, ids: Tensor, scores: Tensor) -> Tensor:
    """Cuts by how many rows there are, as the last bits of a GPU's sums do: much more."""
    self.top_p = 0.95 if scores.shape[0] == 16 else 0.05 * (1 + scores.shape[0] % 8)
    return _warp(self, ids, scores)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("choosing", "is_cut"), [("device", True), ("host", True), ("device", 0)])
def test_no_token_depends_on_how_many_nodes_are_processed(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, choosing: str, is_cut: bool
) -> None:
    monkeypatch.setattr(TopPLogitsWarper, "__call__", _by_number)
    monkeypatch.setattr(matrix, "NEW_TOKENS", 16)
    monkeypatch.setattr(mmspec.pieces, "_ALIGNED", 1)  # whatever the vocabulary
    if not is_cut:
        for module in (mmspec.pieces, mmspec.foresight):
            monkeypatch.setattr(module, "sums", lambda _: False)
    matrix._plain.cache_clear()
    cell = Cell("llama", "adversary", "warped", 3, "text", dtype="float32", exactness="bitwise")
    outcome = run_cell(cell, max_nodes=9, choosing=choosing)
    matrix._plain.cache_clear()
    assert bool(outcome.mismatches) != is_cut, "; ".join(outcome.mismatches)
    assert outcome.accepted > 0


@pytest.mark.parametrize("vocab", [32, 33, 35])
def test_a_padded_vocabulary_changes_no_logprob(vocab: int) -> None:
    scores = torch.randn(4, vocab)
    found = _likeliest(scores, torch.tensor([0, 1, vocab - 1, 5]), vocab)
    expected = scores.log_softmax(dim=-1)
    torch.testing.assert_close(found.top_logprobs, expected.sort(descending=True).values)
    assert found.top_tokens.max() == vocab - 1
