"""GliDe's loss and drafts, beside the paper's written out a token at a time."""

import torch
from head_texts import SEQ, drawn, head_of, places

from mmspec.drafters.glide import GlideHead
from mmspec.target import Target
from mmspec.training.heads.batch import Batch, LayerKV
from mmspec.training.heads.glide import GlideMethod


def test_glide_minimises_the_next_tokens_within_random_speculations(
    target: Target, batch: Batch
) -> None:
    method = GlideMethod(target, max_drafts=3)
    lengths = torch.randint(1, 4, (2, SEQ), generator=drawn(2))
    assert isinstance(method.module, GlideHead)
    losses = []
    for row, at in places(batch, 1):
        said = method.module(
            target.model.get_input_embeddings()(batch.ids[row : row + 1, : at + 1]),
            batch.kv.keys[row : row + 1, :, : at + 1],  # type: ignore[union-attr]
            batch.kv.values[row : row + 1, :, : at + 1],  # type: ignore[union-attr]
            lengths=lengths[row : row + 1],
        )[0, -1]
        losses.append(-(head_of(target) @ said).log_softmax(-1)[batch.ids[row, at + 1]])
    found = method.loss(batch, drawn(2)).total
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_a_glide_draft_sees_nothing_of_the_target_that_stands_behind_its_node_0(
    target: Target, batch: Batch
) -> None:
    method = GlideMethod(target, max_drafts=3)
    drafts = method.drafts(batch, top_k=1)
    changed = LayerKV(batch.kv.keys.clone(), batch.kv.values.clone())  # type: ignore[union-attr]
    changed.keys[:, :, 5:] = 3.0
    changed.values[:, :, 5:] = -2.0
    other = Batch(batch.ids, batch.learned, {}, changed)
    again = method.drafts(other, top_k=1)
    assert torch.equal(drafts[:, :, :5], again[:, :, :5])  # read: the tokens 0 to 4
    assert not torch.equal(drafts[:, :, 5:], again[:, :, 5:])
    assert (drafts[2, :, : SEQ - 3] >= 0).all() and (drafts[:, :, -1] == -1).all()


def test_no_gradient_reaches_the_target(target: Target, batch: Batch) -> None:
    method = GlideMethod(target)
    trained = list(method.module.parameters())
    method.loss(batch, drawn()).total.backward(inputs=trained)
    assert all(parameter.grad is not None for parameter in trained)
    assert all(parameter.grad is None for parameter in target.model.parameters())
