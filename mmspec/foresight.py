"""Foresight: what a rule asks of every node of all rows, found in one go.

Along a walk each choice, chance or draw is asked for once the token before it is known: on a GPU
that is a wait a token. But each is a function of its node's own prefix, so all of them are computed
together, those that the walk never comes to as well, and one copy to the host brings them back.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mmspec.pieces import in_pieces, process, sums
from mmspec.prefixes import Prefixes, apply, cumulates, looks_at_scores_alone, no_tokens
from mmspec.reads import Readback
from mmspec.row import Row
from mmspec.sampling import Choice, best_of
from mmspec.state import Scores
from mmspec.tree import TokenTree
from mmspec.uploads import upload
from mmspec.verify import Nodes, Rule, Verifier, Weigh, coupled


@dataclass(frozen=True)
class _Part:
    """The nodes of one row, in the order of their depths, on their way to a choice."""

    row: Row
    tree: TokenTree
    prefixes: Prefixes
    weigh: Weigh | None  # None: the target chooses
    scores: Tensor  # (nodes, vocab)
    warpers: LogitsProcessorList  # still to come: the last ones that look at the scores alone


class Foresight:
    """What a device has been told to find of a step's nodes. The host does not know it yet."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        groups: defaultdict[Hashable, list[_Part]] = defaultdict(list)
        for part in parts:
            groups[_sameness(part)].append(part)
        self._groups = list(groups.values())
        self._found = [_of_group(group) for group in self._groups]
        self._reading = Readback(*(tensor for _, *small in self._found for tensor in small))

    def choices(self, rows: Sequence[Row]) -> Tensor | None:
        """(batch, 1) int64, on the device: what each of `rows`, whose trees are node 0 alone,
        chooses behind it; None where one needs the host for it."""
        parts = [part for group in self._groups for part in group]
        if len(parts) != len(rows):
            return None
        tokens = [tokens for _, tokens, *_ in self._found]
        places = {part.row: place for place, part in enumerate(parts)}
        order = [places[row] for row in rows]
        chosen = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        if order != sorted(order):
            chosen = chosen.index_select(0, upload(order, chosen.device))
        return chosen.unsqueeze(1)

    def set_out(self) -> None:
        """What is found is copied before whatever the device is told next."""
        self._reading.set_out()

    def tell(self) -> None:
        """Tells the rows. One wait for the device, however many rows and nodes."""
        values = iter(self._reading.values())
        for group, (scores, *_) in zip(self._groups, self._found, strict=True):
            found = enumerate(zip(next(values), next(values), next(values), strict=True))
            for part in group:
                part.row.sampler.foresee(dict(_choices(part, found, scores)))


def foresee(rule: Verifier, steps: Iterable[tuple[Row, TokenTree, Scores]]) -> Foresight:
    """Has the device find what `rule` will ask of the nodes of each row's tree, where that is known
    and the row's sampler allows it.

    A row whose processors raise ends with that error, as it would along the walk.
    """
    parts = list[_Part]()
    for row, tree, scores in steps:
        if row.sampler.can_foresee and isinstance(rule, Rule):
            chooses = rule.only_chooses or rule.walk_of(tree, row) is coupled
            if chooses or _weighs(rule, tree, scores.logits):
                weigh = None if chooses else rule.weigh
                part = row.attempt(partial(_part, row, tree, scores.logits, weigh))
                if part is not None:
                    parts.append(part)
    return Foresight(parts)


def _weighs(rule: Rule, tree: TokenTree, logits: Tensor) -> bool:
    """Whether the walk asks for nothing but the rule's `weigh`, and will not refuse the tree."""
    has_q = tree.q is not None and tree.q.shape == logits.shape
    return rule.weigh is not None and (has_q or not rule.needs_q)


def _part(row: Row, tree: TokenTree, logits: Tensor, weigh: Weigh | None) -> _Part:
    sampler = row.sampler
    prefixes = Prefixes(tree, sampler.ids if sampler.processors else logits.new_empty(1, 0))
    if not prefixes.is_in_order:
        logits = logits.index_select(0, upload(prefixes.order, logits.device))
    is_read_only = weigh is None and not sampler.processors
    if not sampler.changes_logits or (is_read_only and logits.dtype != torch.float64):
        # What adds the noise computes in float32.
        return _Part(row, tree, prefixes, weigh, logits, LogitsProcessorList())
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
    return _Part(row, tree, prefixes, weigh, scores, LogitsProcessorList(processors[shared:]))


def _choices(
    part: _Part, found: Iterator[tuple[int, tuple[int, float, list[float]]]], scores: Tensor
) -> Iterator[tuple[tuple[int, ...], Choice]]:
    """Of each path below node 0, of what was `found` of all nodes, whose processed `scores` (nodes,
    vocab) these are; the part's come next."""
    is_recorded = part.row.sampler.recorder.is_needed
    nodes = zip(part.prefixes.paths, part.prefixes.order, strict=True)
    for (path, node), (place, (token, value, chances)) in zip(nodes, found, strict=False):
        children = len(part.tree.children(node)) if part.weigh else 0
        seen = scores[place] if is_recorded else None
        yield path, Choice(token, value, seen, chances[:children])


def _of_group(parts: Sequence[_Part]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of all nodes of the parts: processed scores (nodes, vocab), tokens (nodes,), the value that
    is not finite where there was nothing to choose (nodes,), and chances (nodes, most children)."""
    weigh = parts[0].weigh
    joined = torch.cat([part.scores for part in parts]) if len(parts) > 1 else parts[0].scores
    scores = _warped(parts[0].warpers, joined, parts[0].row.sampler.is_bitwise)
    places = [part.row.sampler.place(d) for part in parts for d in part.prefixes.depths]
    if weigh is None:
        best = best_of(scores, None if parts[0].row.is_greedy else places)
        return scores, *best, scores.new_empty(len(places), 0)
    nodes = [Nodes.of(part.tree, part.prefixes.order, part.scores) for part in parts]
    weighed = weigh(Nodes.joined(nodes, scores))
    tokens, _ = best_of(weighed.rests, places)
    return scores, tokens, scores.amax(dim=-1), weighed.chances


def _warped(warpers: LogitsProcessorList, scores: Tensor, is_bitwise: bool) -> Tensor:
    if not warpers:
        return scores
    count = scores.shape[0]
    if is_bitwise:
        return process(warpers, no_tokens(scores), scores)
    if count == 1 and any(map(cumulates, warpers)):
        # CUDA sums up a single row by an algorithm of its own, whose order is not fixed.
        scores = scores.repeat(2, 1)
    return warpers(no_tokens(scores), scores)[:count]


def _sameness(part: _Part) -> Hashable:
    """Equal for parts that may be warped and chosen from as one: by the same processors, with noise
    or without, by choices or a rule's weighing, in one dtype."""
    processors = tuple(map(_settings, part.warpers))
    return part.row.is_greedy, part.weigh is None, part.scores.dtype, part.scores.device, processors


def _settings(processor: LogitsProcessor) -> Hashable:
    """Equal for processors that do the same; one tensor is taken for another."""
    values = tuple(
        (name, value if isinstance(value, int | float | str | None) else id(value))
        for name, value in sorted(vars(processor).items())
    )
    return type(processor), values
