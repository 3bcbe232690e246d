"""Two short texts with all that any head reads of them, for losses written out by hand."""

import torch
from torch import Tensor

from mmspec.target import Target
from mmspec.training.heads.batch import Batch

LENGTHS = (9, 7)
SEQ, VOCAB = max(LENGTHS), 112


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(batch: Batch, ahead: int) -> list[tuple[int, int]]:
    """(row, place) whose token `ahead` places further on is learned."""
    return [
        (row, at)
        for row in range(len(LENGTHS))
        for at in range(SEQ - ahead)
        if batch.learned[row, at + ahead]
    ]


def head_of(target: Target) -> Tensor:
    return target.model.get_output_embeddings().weight
