"""Foresight: what the target chooses at every node of all rows, found in one go.

Along a walk each choice is asked for once the one before it is known: on a GPU that is a wait a
token. But each is a function of its node's own prefix, so all of them are computed together, those
that the walk never comes to as well, and one copy to the host brings them back.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mmspec.pieces import in_pieces, process, sums
from mmspec.prefixes import Prefixes, apply, cumulates, looks_at_scores_alone
from mmspec.row import Row
from mmspec.sampling import Choice, best_of, to_host
from mmspec.state import Scores, Verdict
from mmspec.tree import TokenTree
from mmspec.uploads import upload
from mmspec.verify import Rule, Verifier


@dataclass(frozen=True)
class _Part:
    """The nodes of one row, in the order of their depths, on their way to a choice."""

    row: Row
    prefixes: Prefixes
    scores: Tensor  # (nodes, vocab)
    warpers: LogitsProcessorList  # still to come: the last ones that look at the scores alone


def verify_together(
    rule: Verifier, steps: Sequence[tuple[Row, TokenTree, Scores]]
) -> list[Verdict | None]:
    """What each row accepts of its tree by `rule`; None for one that failed."""
    foresee(rule, steps)
    return [row.verify(rule, tree, scores) for row, tree, scores in steps]


def foresee(rule: Verifier, steps: Iterable[tuple[Row, TokenTree, Scores]]) -> None:
    """Tells each row the target's choices at all nodes of its tree, where `rule` asks for nothing
    else and the row's sampler allows it. One wait for the device, however many rows and nodes.

    A row whose processors raise ends with that error, as it would along the walk.
    """
    parts = list[_Part]()
    for row, tree, scores in steps:
        if row.sampler.can_foresee and _only_chooses(rule, row, tree):
            part = row.attempt(partial(_part, row, tree, scores.logits))
            if part is not None:
                parts.append(part)
    if parts:
        _choose(parts)


def _only_chooses(rule: Verifier, row: Row, tree: TokenTree) -> bool:
    """Whether the rule takes nothing of the logits but the target's own choices."""
    if not isinstance(rule, Rule):
        return False
    return rule.only_chooses or row.is_greedy or tree.num_nodes == 1  # then all rules walk


def _part(row: Row, tree: TokenTree, logits: Tensor) -> _Part:
    sampler = row.sampler
    prefixes = Prefixes(tree, sampler.ids if sampler.processors else logits.new_empty(1, 0))
    if not prefixes.is_in_order:
        logits = logits.index_select(0, upload(prefixes.order, logits.device))
    if not sampler.changes_logits:
        return _Part(row, prefixes, logits, LogitsProcessorList())
    # A copy in float32, as transformers makes it: processors may write into it.
    scores = logits.to(dtype=torch.float32, copy=prefixes.is_in_order)
    processors = list(sampler.processors)
    shared = len(processors)  # rows may share a call of those from here on
    while shared and looks_at_scores_alone(processors[shared - 1]):
        shared -= 1
    for processor in processors[:shared]:
        if sampler.is_bitwise and sums(processor):
            scores = in_pieces(processor, scores)
        else:
            scores = apply(processor, prefixes, scores)
    return _Part(row, prefixes, scores, LogitsProcessorList(processors[shared:]))


def _choose(parts: Sequence[_Part]) -> None:
    number = _Sameness()
    found = list[tuple[list[_Part], Tensor, Tensor, Tensor]]()
    for _, same in groupby(sorted(parts, key=number), key=number):
        some = list(same)
        joined = _joined([part.scores for part in some])
        scores = _warped(some[0].warpers, joined, some[0].row.sampler.is_bitwise)
        places = [part.row.sampler.place(d) for part in some for d in part.prefixes.depths]
        best = best_of(scores, None if some[0].row.is_greedy else places)
        found.append((some, scores, *best))
    tokens = _joined([tokens for _, _, tokens, _ in found])
    values = _joined([values.double() for *_, values in found])
    choices = iter(to_host(tokens, values))  # the one wait
    for some, scores, *_ in found:
        first = 0
        for part in some:
            part.row.sampler.foresee(dict(_choices(part, scores[first:], choices)))
            first += len(part.prefixes.paths)


def _choices(
    part: _Part, scores: Tensor, choices: Iterator[tuple[int, float]]
) -> Iterator[tuple[tuple[int, ...], Choice]]:
    is_recorded = part.row.sampler.recorder.is_needed
    for place, path in enumerate(part.prefixes.paths):
        yield path, Choice(*next(choices), scores[place] if is_recorded else None)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _warped(warpers: LogitsProcessorList, scores: Tensor, is_bitwise: bool) -> Tensor:
    if not warpers:
        return scores
    count = scores.shape[0]
    if is_bitwise:
        return process(warpers, _nothing(scores), scores)
    if count == 1 and any(map(cumulates, warpers)):
        # CUDA sums up a single row by an algorithm of its own, whose order is not fixed.
        scores = scores.repeat(2, 1)
    return warpers(_nothing(scores), scores)[:count]


def _nothing(scores: Tensor) -> Tensor:
    """(nodes, 0): for those that look at no token."""
    return torch.empty(scores.shape[0], 0, dtype=torch.long, device=scores.device)


class _Sameness:
    """Numbers parts, alike where they may be warped and chosen from as one: by the same processors,
    with noise or without, in one dtype."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, part: _Part) -> int:
        processors = tuple(map(_settings, part.warpers))
        key = (part.row.is_greedy, part.scores.dtype, part.scores.device, processors)
        return self._numbers.setdefault(key, len(self._numbers))


def _settings(processor: LogitsProcessor) -> Hashable:
    """Equal for processors that do the same; one tensor is taken for another."""
    values = tuple(
        (name, value if isinstance(value, int | float | str | None) else id(value))
        for name, value in sorted(vars(processor).items())
    )
    return type(processor), values
