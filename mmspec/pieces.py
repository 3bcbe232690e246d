"""Pieces: logits processors that sum up a row of scores, called in one shape.

On a GPU the order of a sum over the vocabulary depends on how many rows are summed up at once, and
on whether a row begins at a multiple of 16 bytes. In bitwise mode a node's probabilities must not
depend on how many nodes there are: the rows are cut into pieces of one number.
"""

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import TopHLogitsWarper

from mmspec.nucleus import TopP

_SUMMING = (
    TopPLogitsWarper,
    TopP,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    TopHLogitsWarper,
    LogitNormalization,
)
_ROWS = 16
_ALIGNED = 4  # float32 values in 16 bytes


def sums(processor: LogitsProcessor) -> bool:
    """Whether it looks at the scores alone and sums them up."""
    return type(processor) in _SUMMING


def process(processors: LogitsProcessorList, ids: Tensor, scores: Tensor) -> Tensor:
    """What the processors, one after the other, make of `scores` (nodes, vocab) after `ids` (nodes,
    seq): of each row the same bits, however many there are."""
    for processor in processors:
        if sums(processor):
            scores = in_pieces(processor, scores)
        else:
            scores = processor(ids, scores)
    return scores


def in_pieces(processor: LogitsProcessor, scores: Tensor) -> Tensor:
    """What a processor that `sums` makes of `scores` (nodes, vocab), in calls of one shape."""
    taken, rows = _sizes(scores.device.type, scores.shape[1])
    made = []
    for piece in scores.split(taken):
        count = piece.shape[0]
        whole = torch.cat([piece, piece[:1].expand(rows - count, -1)])  # where a row is aligned
        nothing = whole.new_empty(rows, 0, dtype=torch.long)
        made.append(processor(nothing, whole)[:count])
    return torch.cat(made)


def _sizes(device_type: str, vocab_size: int) -> tuple[int, int]:
    """(nodes in a call, rows of it)"""
    if device_type == "cpu":
        return 1, 1
    # Only the first of rows that are no multiple of 16 bytes is sure to begin at one; and a single
    # row would be summed up by an algorithm of its own, whose order is not fixed.
    return (_ROWS, _ROWS) if vocab_size % _ALIGNED == 0 else (1, 2)
