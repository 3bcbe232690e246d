"""What is minimised, beside the papers' formulas written out a token at a time."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from head_texts import SEQ, VOCAB, drawn, head_of, places
from torch import Tensor

from mmspec.drafters.eagle import EagleHead
from mmspec.drafters.eagle.bound_head import BoundHead
from mmspec.drafters.eagle.scoring import EagleScorer
from mmspec.kv import KVCache
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.training.heads import unrolled
from mmspec.training.heads.batch import Batch
from mmspec.training.heads.eagle import EagleMethod
from mmspec.training.heads.eagle3 import Eagle3Method, frequent_tokens, read_layers
from mmspec.training.heads.medusa import MedusaMethod
from mmspec.training.heads.target_head import head_weight
from mmspec.training.heads.unrolled import GrowingDiagonal
from mmspec.tree import TokenTree


def test_medusa_minimises_each_heads_cross_entropy_weighted_by_depth(
    target: Target, batch: Batch
) -> None:
    method = MedusaMethod(target, num_heads=3, loss_decay=0.8)
    for parameter in method.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    expected = torch.zeros(())
    for depth, head in enumerate(method.module):
        found = [
            -head(batch.hidden[2][row, at]).log_softmax(-1)[batch.ids[row, at + depth + 2]]
            for row, at in places(batch, depth + 2)
        ]
        expected = expected + 0.8 ** (depth + 1) * torch.stack(found).mean()
    found = method.loss(batch, drawn()).total
    torch.testing.assert_close(found, expected)
    drafts = method.drafts(batch, top_k=2)
    best = method.module[1](batch.hidden[2][0, 3]).topk(2).indices
    assert torch.equal(drafts[1, 0, 3], best)


def test_small_medusa_heads_speak_through_the_targets_own(target: Target, batch: Batch) -> None:
    method = MedusaMethod(target, num_heads=2, own_heads=False)
    for parameter in method.module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    said = method.module(batch.hidden[2], lambda states: states @ head_of(target).T)
    assert torch.equal(method.drafts(batch, top_k=3), said.topk(3).indices)


def test_eagle_minimises_the_distance_of_states_and_of_what_they_say(
    target: Target, batch: Batch
) -> None:
    method = EagleMethod(target, noise=0.1, token_weight=0.1)
    noise = (torch.rand(batch.hidden[2].shape, generator=drawn(3)) * 2 - 1) * 0.1
    assert noise.abs().max() <= 0.1 and noise.min() < 0 < noise.max()
    features = batch.hidden[2] + noise
    embedding = target.model.get_input_embeddings().weight
    state_losses, token_losses = [], []
    for row, at in places(batch, 2):
        # The text up to this place alone: what stands behind it has no part in it.
        embedded = embedding[batch.ids[row, 1 : at + 2]].unsqueeze(0)
        said = method.module(embedded, features[row, : at + 1].unsqueeze(0)).features[0, -1]
        wanted = batch.hidden[2][row, at + 1]
        state_losses.append(F.smooth_l1_loss(said, wanted))
        p = (head_of(target) @ wanted).softmax(-1)
        q = (head_of(target) @ said).softmax(-1)
        token_losses.append(-(p * q.log()).sum())
    expected = torch.stack(state_losses).mean() + 0.1 * torch.stack(token_losses).mean()
    torch.testing.assert_close(method.loss(batch, drawn(3)).total, expected)


@pytest.mark.parametrize("vocabulary", [40, 100])
def test_eagle_3_minimises_what_a_chain_of_its_own_drafts_says(
    target: Target, batch: Batch, vocabulary: int
) -> None:
    """Of 40 tokens hardly one is what the target says, of 100 nearly all are."""
    method = eagle3(target, steps=3, vocabulary=vocabulary)
    kept = frequent_tokens(counts(), vocabulary).tolist()
    expected = torch.zeros(())
    for step in range(3):
        losses = []
        for row, at in places(batch, step + 2):
            said = chain_logits(method, target, batch, row, at, step)
            p = head_of(target) @ batch.hidden[2][row, at + step + 1]
            if int(p.argmax()) not in kept:
                losses.append(torch.zeros(()))
                continue
            losses.append(-(p[kept].softmax(-1) * said[kept].log_softmax(-1)).sum())
        expected = expected + 0.8**step * torch.stack(losses).mean()
    torch.testing.assert_close(method.loss(batch, drawn()).total, expected, rtol=1e-4, atol=1e-5)


def test_the_unrolled_head_says_what_it_says_when_it_drafts(target: Target, batch: Batch) -> None:
    """At every place, three drafts deep, through the cache that drafting uses."""
    method = eagle3(target, steps=3)
    best = method.drafts(batch, top_k=2)
    for row, at in [(0, 0), (0, 4), (1, 2)]:
        for step in range(3):
            said = chain_logits(method, target, batch, row, at, step)
            assert torch.equal(best[step, row, at], said.topk(2).indices)


def counts() -> np.ndarray:
    """Every third token is frequent."""
    return np.arange(VOCAB) % 3 * 10 + (np.arange(VOCAB) < 40)


def eagle3(target: Target, *, steps: int, vocabulary: int = 40) -> Eagle3Method:
    torch.manual_seed(1)
    return Eagle3Method(target, counts(), steps=steps, vocabulary=vocabulary)


def chain_logits(
    method: Eagle3Method, target: Target, batch: Batch, row: int, at: int, step: int
) -> Tensor:
    """(vocab,) what the head says of token at + step + 2, drafted a token at a time over a cache,
    when the tokens up to `at` are read."""
    head = method.module
    assert isinstance(head, EagleHead)
    bound = BoundHead(head, target, dtype=torch.float32)
    features = bound.project(bound.joined({tap: batch.hidden[tap][row] for tap in bound.taps}))
    cache = KVCache(1)
    slot = cache.open(SEQ)
    scorer = EagleScorer(bound, features[: at + 1], {slot: at + 1})
    tokens, placement = batch.ids[row].tolist(), Placement(slot, (0,))
    logits, done = torch.zeros(0), 0
    for depth in range(step + 1):
        chain = tokens[2 : at + 2 + depth]
        tree = TokenTree.chain(tokens[1], chain, (1.0,) * len(chain), "")
        (scores,) = scorer.score([tree], cache, [placement], written=[done])
        logits, done = scores.logits[-1], tree.num_nodes
    return logits


@pytest.mark.parametrize("most_kept", [0, 2**20])
def test_growing_diagonals_are_one_softmax_under_one_mask(
    most_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its weights are kept for the gradient or made again."""
    monkeypatch.setattr(unrolled, "_MOST_KEPT", most_kept)
    attend, seq, scaling = GrowingDiagonal(), 5, 0.3
    steps = [
        [torch.randn(2, heads, seq, 8, requires_grad=True) for heads in (4, 2, 2)] for _ in range(3)
    ]
    for step, (query, keys, values) in enumerate(steps):
        found = attend(0, query, keys, values, scaling)
        all_keys, all_values = (
            torch.cat([s[part].repeat_interleave(2, dim=1) for s in steps[: step + 1]], dim=2)
            for part in (1, 2)
        )
        mask = torch.cat([torch.ones(seq, seq).tril(), *[torch.eye(seq)] * step], dim=1).bool()
        scores = (query @ all_keys.transpose(-1, -2) * scaling).masked_fill(~mask, -torch.inf)
        expected = (scores.softmax(-1) @ all_values).transpose(1, 2)
        torch.testing.assert_close(found, expected)
        given = steps[0][1:] + steps[step]  # the first keys and values, and this step's own
        grads = [torch.autograd.grad(out.square().sum(), given) for out in (found, expected)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_the_head_of_a_packed_target_is_found_by_asking_it(target: Target) -> None:
    class Packed(torch.nn.Module):
        """As quantised heads are: nothing to be read off."""

        in_features = 64

        def __init__(self, full: Tensor) -> None:
            super().__init__()
            self.weight = torch.zeros(3, 3, dtype=torch.uint8)
            self._full = full

        def forward(self, states: Tensor) -> Tensor:
            return states @ self._full.T + 1.0

    class Model:
        def get_output_embeddings(self) -> torch.nn.Module:
            return Packed(head_of(target).detach())

    other = copy.copy(target)
    other.model = Model()  # type: ignore[assignment]
    torch.testing.assert_close(head_weight(other), head_weight(target))


def test_the_heads_vocabulary_holds_the_most_frequent_tokens_in_order() -> None:
    found = frequent_tokens(np.array([5, 0, 7, 5, 1]), 3)
    assert found.tolist() == [0, 2, 3]
    assert frequent_tokens(np.array([1, 1]), 9).tolist() == [0, 1]
    head = EagleHead(eagle3_config(found))
    head.set_vocabulary(found)
    assert head.target_ids is not None and head.target_ids.tolist() == [0, 2, 3]
    assert head.t2d.tolist() == [True, False, True, True, False]


def eagle3_config(tokens: Tensor):  # type: ignore[no-untyped-def]
    from mmspec.drafters.eagle import EagleHeadConfig
    from mmspec.drafters.heads import BlockConfig

    block = BlockConfig(8, 8, 2, 2, 4, vocab_size=5)
    return EagleHeadConfig(3, block, len(tokens), 8, layers=(1,))


@pytest.mark.parametrize(
    ("layers", "read"), [(1, (0,)), (2, (1,)), (4, (1, 2, 3)), (32, (2, 16, 29))]
)
def test_a_low_a_middle_and_a_high_state_are_read(layers: int, read: tuple[int, ...]) -> None:
    assert read_layers(layers) == read


@pytest.mark.parametrize(
    "make",
    [
        lambda target: MedusaMethod(target, num_heads=2),
        lambda target: MedusaMethod(target, num_heads=2, own_heads=False),
        EagleMethod,
        lambda target: eagle3(target, steps=2),
    ],
)
def test_no_gradient_reaches_the_target(
    target: Target, batch: Batch, make: Callable[[Target], object]
) -> None:
    method = make(target)
    trained = list(method.module.parameters())  # type: ignore[attr-defined]
    method.loss(batch, drawn()).total.backward(inputs=trained)  # type: ignore[attr-defined]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad is None for parameter in target.model.parameters())
