"""How often a head is right, beside decoding written out."""

import torch
from torch import Tensor

from mmspec.training.heads.acceptance import _walk, evaluate
from mmspec.training.heads.batch import Batch
from mmspec.training.heads.method import Losses


class Drafting:
    """A method whose drafts are known."""

    module, taps, kv_layer, rate = torch.nn.Identity(), frozenset[int](), None, 1.0

    def __init__(self, drafts: Tensor) -> None:
        self._drafts = drafts
        self.depth = len(drafts)

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        return self._drafts

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        raise NotImplementedError

    def save(self, folder: object, *, dtype: torch.dtype) -> None:
        raise NotImplementedError


def test_a_chain_is_accepted_up_to_its_first_wrong_draft() -> None:
    """The text is 0 1 2 3 4 5 6 7 8, its answer begins at 3.

    node 0   drafts     accepted   the target's own
    3        4 5 .      2          6
    6        . 8        0          7
    7        8          1          (the end)
    """
    ids = torch.arange(9).unsqueeze(0)
    learned = ids >= 3
    drafts = torch.full((3, 1, 9, 2), -1)
    drafts[0, 0, 2, 0] = 4  # after tokens up to 2 are read, 3 chosen
    drafts[1, 0, 2, 0] = 5
    drafts[2, 0, 2, 1] = 6  # the second best
    drafts[1, 0, 5, 0] = 8
    drafts[0, 0, 6, 0] = 8
    batch = Batch(ids, learned)
    found = evaluate(Drafting(drafts), [batch], top_k=2)
    # Drafts of the places 4 to 8 by the first head, and so on; all that are learned count.
    assert found.tokens == 6
    assert found.top_1 == tuple(torch.tensor([2 / 6, 2 / 6, 0]).tolist())
    assert found.top_k == tuple(torch.tensor([2 / 6, 2 / 6, 1 / 5]).tolist())
    assert found.tokens_a_step == 5 / 3


def test_the_walk_is_that_of_decoding_text_by_text() -> None:
    draw = torch.Generator().manual_seed(0)
    firsts = torch.rand(4, 5, 40, generator=draw) < 0.6
    learned = torch.rand(5, 40, generator=draw) < 0.9
    tokens = steps = 0
    for row in range(5):
        at = 0
        while at < 40:
            if not learned[row, at]:
                at += 1
                continue
            stop = at
            while stop < 40 and learned[row, stop]:
                stop += 1
            chosen = at  # the newest chosen token
            while chosen < stop - 1:
                path = []
                for depth in range(4):
                    if chosen == 0 or not firsts[depth, row, chosen - 1]:
                        break
                    path.append(chosen + 1 + depth)
                new = [place for place in [*path, chosen + len(path) + 1] if place < stop]
                tokens, steps, chosen = tokens + len(new), steps + 1, chosen + len(new)
            at = stop
    assert _walk(firsts, learned) == (tokens, steps)
    assert tokens > 1.5 * steps
