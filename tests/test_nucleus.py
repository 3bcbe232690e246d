"""The nucleus without a sort, under Triton's interpreter: what transformers' top-p keeps."""

import interpreted
import pretend
import pytest
import torch
from families import FAMILIES
from torch import Tensor
from transformers import TopPLogitsWarper

import mmspec
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.nucleus import TopP, for_device
from mmspec.requests import Request

pytest.importorskip("triton", reason="Triton is not installed")

from mmspec.nucleus_kernels import nucleus

assert interpreted


def drawn(rows: int, vocab: int) -> Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(vocab))


@pytest.mark.parametrize("vocab", [1, 5, 64, 2500])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.8, 0.95])
def test_it_keeps_what_transformers_keeps(vocab: int, top_p: float) -> None:
    scores = drawn(4, vocab)
    scores[1, ::2] = -torch.inf  # a top-k before it
    scores[1, 0] = 0.5
    scores[2] *= 20
    expected = TopPLogitsWarper(top_p)(torch.empty(4, 0, dtype=torch.long), scores)
    assert torch.equal(nucleus(scores, top_p), expected)


@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.9, 0.999])
def test_it_is_the_fewest_tokens_that_have_the_probability(top_p: float) -> None:
    """Also where many are equal, as logits in bfloat16 are, in several parts of a row, and where
    nothing lies between them."""
    scores = drawn(3, 2300).bfloat16().float()
    scores[1] = 1 + torch.randperm(2300, generator=torch.Generator().manual_seed(0)) * 2**-23
    scores[2] = 0.0
    kept = nucleus(scores, top_p) > -torch.inf
    chances = scores.double().softmax(-1)
    for own, row, chance in zip(kept, scores, chances, strict=True):
        assert own.all() or row[own].min() >= row[~own].max()
        mass, least = chance[own].sum(), chance[own].min()
        assert mass >= top_p - 1e-6 and mass - least < top_p + 1e-6
        border = (row == row[own].min()).nonzero().squeeze(1)
        assert own[border].tolist() == sorted(own[border].tolist()), "of equal ones the last"


def test_a_row_has_its_bits_whatever_stands_beside_it() -> None:
    scores = drawn(7, 300)
    together = nucleus(scores, 0.9)
    assert torch.equal(together, torch.cat([nucleus(row[None], 0.9) for row in scores]))
    assert torch.equal(together, nucleus(scores.T.contiguous().T, 0.9)), "whatever its strides"


def test_what_nobody_can_choose_from_stays() -> None:
    scores = drawn(4, 10)
    scores[0, 3], scores[1, 2], scores[2] = torch.nan, torch.inf, -torch.inf
    got = nucleus(scores, 0.5)
    torch.testing.assert_close(got[:3], scores[:3], rtol=0, atol=0, equal_nan=True)
    assert (got[3] == -torch.inf).any()


def test_others_warpers_are_left_alone() -> None:
    kinds = [TopPLogitsWarper(0.9), TopPLogitsWarper(0.9, min_tokens_to_keep=2)]
    assert for_device(kinds, torch.device("cpu")) is kinds  # type: ignore[arg-type]
    with pretend.device():
        first, second = for_device(kinds, torch.device("cuda"))  # type: ignore[arg-type]
    assert type(first) is TopP and first.top_p == 0.9 and second is kinds[1]


def test_what_a_draft_says_on_a_cpu_is_warped_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processors of a target on a GPU warp the logits of a draft model elsewhere, too."""
    from mmspec import nucleus_kernels

    def launch(scores: Tensor, top_p: float) -> Tensor:
        assert scores.is_cuda, "Triton cannot read it"
        return nucleus(scores, top_p)

    monkeypatch.setattr(nucleus_kernels, "nucleus", launch)
    scores, nothing = drawn(2, 64), torch.empty(2, 0, dtype=torch.long)
    expected = TopPLogitsWarper(0.8)(nothing, scores)
    assert torch.equal(TopP(0.8)(nothing, scores), expected)
    with pretend.device():
        assert torch.equal(TopP(0.8)(nothing.cuda(), scores.cuda()).cpu(), expected)


def test_a_text_on_the_device_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(
        {"input_ids": torch.tensor([[5, 6, 7, 8] * 3])}, temperature=1.3, top_k=0, top_p=0.7,
        seed=3, max_new_tokens=8,
    )  # fmt: skip
    expected = mmspec.load(FAMILIES["llama"].build(torch.float64), drafter="none").generate(request)
    rows, call = [], TopP.__call__

    def noted(self: TopP, ids: Tensor, scores: Tensor) -> Tensor:
        rows.append(len(scores))
        return call(self, ids, scores)

    monkeypatch.setattr(TopP, "__call__", noted)
    with pretend.device():
        lookup = PromptLookup(min_match=1, min_confidence=0.0)
        engine = mmspec.load(FAMILIES["llama"].build(torch.float64).to("cuda"), drafter=lookup)
        result = engine.generate(request, speculate=True)
    assert result.tokens == expected.tokens
    assert max(rows) > 1, "nodes of a tree together"
