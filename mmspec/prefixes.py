"""Prefixes: the token ids before each node of a tree, as logits processors are given them all at
once.

A processor that depends on the tokens alone says the same of a node whether it is called for it by
itself or for many nodes. What it needs for that depends on its class.
"""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from mmspec.nucleus import TopP
from mmspec.penalties import NO_TOKEN, GeneratedTokenPenalty
from mmspec.tree import TokenTree
from mmspec.uploads import upload


class Prefixes:
    """What stands before the logits of each node: the text so far and the path down to the node.

    The nodes are taken in the order of their depths, `order`, so that those of one depth, whose
    prefixes are of one length, are neighbours.
    """

    def __init__(self, tree: TokenTree, ids: Tensor) -> None:
        """`ids` (1, seq) int64: the prompt and the chosen tokens, node 0's the last of them."""
        self._ids = ids
        self._node0 = tree.tokens[0]
        self.order = sorted(range(tree.num_nodes), key=lambda node: tree.depths[node])
        self.depths = [tree.depths[node] for node in self.order]
        paths: dict[int, tuple[int, ...]] = {0: ()}
        for node in range(1, tree.num_nodes):
            paths[node] = (*paths[tree.parents[node]], tree.tokens[node])
        self.paths = [paths[node] for node in self.order]  # (nodes,) the tokens below node 0's

    @property
    def is_in_order(self) -> bool:
        """Whether the tree's own order is the one of depths."""
        return self.order == list(range(len(self.order)))

    @cached_property
    def levels(self) -> list[range]:
        """The nodes of each depth, by their places in `order`."""
        starts = [self.depths.index(depth) for depth in range(self.depths[-1] + 1)]
        return [range(a, b) for a, b in zip(starts, [*starts[1:], len(self.order)], strict=True)]

    @cached_property
    def by_level(self) -> list[Tensor]:
        """(nodes of the depth, seq + depth) for each depth."""
        return [self._with([self.paths[i] for i in level], self._ids) for level in self.levels]

    @cached_property
    def by_node(self) -> list[Tensor]:
        """(1, seq + depth) for each node, on the host."""
        ids = self._ids.cpu()
        return [self._with([path], ids) for path in self.paths]

    @cached_property
    def ended_by_last(self) -> Tensor:
        """(nodes, seq + deepest): behind each prefix its last token again and again."""
        return self._even([path[-1] if path else self._node0 for path in self.paths])

    @cached_property
    def ended_by_none(self) -> Tensor:
        """(nodes, seq + deepest): behind each prefix `NO_TOKEN`."""
        return self._even([NO_TOKEN] * len(self.paths))

    def _even(self, endings: list[int]) -> Tensor:
        deepest = self.depths[-1]
        pairs = zip(self.paths, endings, strict=True)
        even = [(*path, *[ending] * (deepest - len(path))) for path, ending in pairs]
        return self._with(even, self._ids)

    def _with(self, paths: list[tuple[int, ...]], ids: Tensor) -> Tensor:
        before = ids.expand(len(paths), -1)
        if not paths[0]:
            return before  # copied by nobody: processors only read it
        return torch.cat([before, upload(paths, ids.device)], dim=1)


def apply(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    """What `processor` makes of `scores` (nodes, vocab), which it may write into; each node's are
    those that it makes of the node alone. Only where `can_apply`."""
    return _FORMS[type(processor)](processor, prefixes, scores)


def can_apply(processor: LogitsProcessor) -> bool:
    """Whether the processor is known to depend on the tokens alone, and how it is to be called.
    What a user has written, or made a function for, is called along the walk."""
    if type(processor) is RepetitionPenaltyLogitsProcessor:
        return getattr(processor, "prompt_ignore_length", None) is None
    return type(processor) in _FORMS


def looks_at_scores_alone(processor: LogitsProcessor) -> bool:
    return _FORMS.get(type(processor)) is _without_tokens


def no_tokens(scores: Tensor) -> Tensor:
    """(nodes, 0) int64: for those that look at `scores` (nodes, vocab) alone."""
    return scores.new_empty(scores.shape[0], 0, dtype=torch.long)


def cumulates(processor: LogitsProcessor) -> bool:
    """Whether it sums up the sorted probabilities by torch."""
    return type(processor) in (TopPLogitsWarper, TypicalLogitsWarper)


_Form = Callable[[LogitsProcessor, Prefixes, Tensor], Tensor]


def _without_tokens(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    return processor(no_tokens(scores), scores)


def _of_token_sets(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    return processor(prefixes.ended_by_last, scores)


def _of_token_counts(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    return processor(prefixes.ended_by_none, scores)


def _by_level(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    levels = zip(prefixes.levels, prefixes.by_level, strict=True)
    return torch.cat([processor(ids, scores[level.start : level.stop]) for level, ids in levels])


def _by_node(processor: LogitsProcessor, prefixes: Prefixes, scores: Tensor) -> Tensor:
    nodes = zip(prefixes.by_node, scores.split(1), strict=True)
    return torch.cat([processor(ids, own) for ids, own in nodes])


_FORMS: Mapping[type, _Form] = {
    TemperatureLogitsWarper: _without_tokens,
    TopKLogitsWarper: _without_tokens,
    TopPLogitsWarper: _without_tokens,
    TopP: _without_tokens,
    MinPLogitsWarper: _without_tokens,
    TypicalLogitsWarper: _without_tokens,
    EpsilonLogitsWarper: _without_tokens,
    EtaLogitsWarper: _without_tokens,
    InfNanRemoveLogitsProcessor: _without_tokens,
    LogitNormalization: _without_tokens,
    SuppressTokensLogitsProcessor: _without_tokens,
    RepetitionPenaltyLogitsProcessor: _of_token_sets,
    GeneratedTokenPenalty: _of_token_counts,
    MinLengthLogitsProcessor: _by_level,
    MinNewTokensLengthLogitsProcessor: _by_level,
    ForcedBOSTokenLogitsProcessor: _by_level,
    ForcedEOSTokenLogitsProcessor: _by_level,
    ExponentialDecayLengthPenalty: _by_level,
    SuppressTokensAtBeginLogitsProcessor: _by_level,
    SequenceBiasLogitsProcessor: _by_level,
    NoBadWordsLogitsProcessor: _by_level,
    NoRepeatNGramLogitsProcessor: _by_level,
    # Made for a prompt of one row: they say nothing of a second one.
    EncoderRepetitionPenaltyLogitsProcessor: _by_node,
    EncoderNoRepeatNGramLogitsProcessor: _by_node,
}
