"""Drafting: the step's trees. The rows' drafters are asked, their trees merged and cut."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import NamedTuple, Protocol, TypeVar

import torch

from mmspec.controller import Controller, Pace, Speculate, Step
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.asking import ask_each
from mmspec.drafters.base import (
    Drafter,
    DraftSession,
    LearningSession,
    PreparedSession,
    PricedSession,
    TappingDrafter,
)
from mmspec.drafters.token_view import TokenView
from mmspec.kernels import says_lost
from mmspec.state import Prefill, Preparation, Prompt, Scores, Taps, Verdict
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Opened(NamedTuple):
    """A drafter's session for one row. What it does beside proposing is looked up once: isinstance
    takes its time for a protocol."""

    session: DraftSession
    priced: PricedSession | None  # the same, if it looks at the time
    prepared: PreparedSession | None  # the same, if it has something to do before it can propose


class Drafting:
    """One row's draft sessions. A drafter must never cost a text: one that fails is left out from
    then on. What says that the device is lost is raised."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        speculate: Speculate = "auto",
        *,
        needs_q: bool = False,
    ) -> None:
        """With `needs_q` nobody leaves out a node of a tree for what was drawn there: the drafter
        is told the budget before it draws, and keeps to it."""
        self.pace = Pace(speculate, keeps_trees=needs_q)
        self.drafters = list(drafters) if speculate else []  # that take part, as they are asked
        self.taps = _taps_of(self.drafters)
        self.alone: set[str] = set()  # drafters that are asked for this row and no other at once
        self._device = torch.device("cpu")
        self.opened: dict[str, Opened] = {}  # by the names of those that were started

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> None:
        """Opens a session of every drafter."""
        self._device = prefill.logits.device
        for drafter in self.drafters:
            self._attempt(drafter.name, partial(self._open, drafter, prompt, prefill, guide))

    def _open(self, drafter: Drafter, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> None:
        session = drafter.start(prompt, prefill, guide)
        self.opened[drafter.name] = Opened(
            session,
            session if isinstance(session, PricedSession) else None,
            session if isinstance(session, PreparedSession) else None,
        )

    def preparation(self, name: str, num_tokens: int) -> Preparation | None:
        """What the drafter has to do before it proposes for a text of `num_tokens`."""
        prepared = self.opened[name].prepared
        if prepared is None:
            return None
        return self._attempt(name, partial(prepared.preparation, num_tokens))

    def prepare(self, drafter: Drafter, tokens: Sequence[int]) -> float:
        """Has the drafter do it, and returns what that took."""
        begun = time.perf_counter()
        self._attempt(drafter.name, partial(self._prepare, drafter, tokens))
        return time.perf_counter() - begun

    def _prepare(self, drafter: Drafter, tokens: Sequence[int]) -> None:
        prepared = self.opened[drafter.name].prepared
        assert prepared is not None, "nothing was due"
        prepared.prepare(TokenView(tokens))
        if not _reads_text_alone(drafter):  # what the device does is none of its own
            self.wait()

    def wait(self) -> None:
        """For what was launched on the target's device, so that the clock sees it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """Tells every drafter what became of the step's tree."""
        for name, opened in list(self.opened.items()):
            self._attempt(name, partial(opened.session.observe, tree, verdict, scores))

    def close(self, chosen: Sequence[int] = ()) -> None:
        """The request ended with the tokens `chosen`, or nobody waits for it any more."""
        if chosen:
            self.pace.lengths.observe(len(chosen))
        with ExitStack() as at_end:  # each is closed, also where another has lost the device
            for name in self.opened:
                at_end.callback(self._attempt, name, partial(self._close, name, chosen))

    def _close(self, name: str, chosen: Sequence[int]) -> None:
        with closing(self.opened.pop(name).session) as session:
            if isinstance(session, LearningSession):
                session.learn(chosen)

    def _attempt(self, name: str, call: Callable[[], T]) -> T | None:
        """What the drafter says. Where it fails it is left out, and plain decoding goes on. Raises
        what says that the device is lost: what comes next would fail too."""
        try:
            return call()
        except Exception as error:
            if says_lost(error):
                raise
            self.leave_out(name, error)  # logged with its traceback
            return None

    def leave_out(self, name: str, error: Exception, *, rows: int = 1) -> None:
        """The drafter failed: this request goes on without it, and so do others of its batch where
        it failed in the same way, `rows` in all; 0: that was said."""
        if rows:
            logger.warning(
                "drafter %s failed (%s: %s); %s without it, %s %s is the same",
                name,
                type(error).__name__,
                error,
                "this request goes on" if rows == 1 else f"{rows} requests go on",
                "its" if rows == 1 else "each one's",
                "distribution" if self.pace.keeps_trees else "text",
                exc_info=error,
            )
        self.drafters = [drafter for drafter in self.drafters if drafter.name != name]
        self.taps = _taps_of(self.drafters)
        opened = self.opened.pop(name, None)
        if opened is not None:
            try:
                opened.session.close()
            except Exception as also:  # said once already
                logger.debug("drafter %s failed again at its close", name, exc_info=also)


def _taps_of(drafters: Sequence[Drafter]) -> Taps:
    """What they read, all together."""
    return reduce(or_, (d.taps for d in drafters if isinstance(d, TappingDrafter)), Taps())


class Drafted(Protocol):
    """A row, as far as it is drafted for."""

    tokens: list[int]  # the prompt's and the chosen ones
    drafting: Drafting

    @property
    def room(self) -> int:
        """Tokens that the text still has room for."""


@dataclass(frozen=True)
class DraftSettings:
    """How an engine's rows are drafted for."""

    controller: Controller  # whom to ask, and what to score of it
    fit: Callable[[TokenTree], TokenTree]  # makes any tree one that the target can score
    max_nodes: int  # drafted nodes a row and step
    watched_queries: int = 0  # newest tokens of a row whose queries the cache keeps for a drafter
    max_states: int | None = None  # nodes of all rows whose running states there is room for
    rope_border: int | None = None  # tokens beyond which a text's positions are turned otherwise

    def nodes_of(self, num_rows: int) -> int:
        """Drafted nodes of each of so many rows. Node 0, which all have, keeps a state too."""
        if self.max_states is None:
            return self.max_nodes
        return min(self.max_nodes, max(self.max_states // num_rows - 1, 0))

    def depth_of(self, row: Drafted) -> int:
        """Levels of its tree: the target adds a token of its own. No draft takes a text beyond the
        border, which would turn the positions above it, too."""
        room, num_tokens = row.room - 1, len(row.tokens)
        if self.rope_border is None or num_tokens > self.rope_border:
            return room
        return min(room, self.rope_border - num_tokens)


def tapped_layers(rows: Sequence[Drafted]) -> frozenset[int]:
    """The layers whose hidden states the rows' drafters read."""
    return frozenset[int]().union(*(row.drafting.taps.layers for row in rows))


class Proposed(NamedTuple):
    """What is to be scored."""

    step: Step  # its decisions
    trees: list[TokenTree]  # (rows,)
    is_quiet: bool  # nothing is to be scored, nor would be if the step were not begun already


def propose(
    rows: Sequence[Drafted], settings: DraftSettings, vocab_size: int, *, is_begun: bool = False
) -> Proposed:
    """One tree a row: what the row's drafters proposed, merged, made fit for the target and cut to
    what the controller says. Where a row's trees must be kept whole all this leaves them alone, but
    for a cut at the depth that the text has room for.

    In a step that `is_begun` every tree is node 0 alone. Drafters that read the text alone are
    asked all the same, as the device is at work; the others must not touch what it works on."""
    begun = time.perf_counter()
    fit, max_nodes = settings.fit, settings.nodes_of(len(rows))
    context = max(len(row.tokens) for row in rows)
    for row in rows:
        row.drafting.pace.room = row.room
    step = settings.controller.step([row.drafting.pace for row in rows], context)
    roots = [TokenTree.root(row.tokens[-1]) for row in rows]
    trees = list(roots)
    awake = [(i, row) for i, row in enumerate(rows) if max_nodes and not step.sleeps(i)]
    drafters = {drafter.name: drafter for _, row in awake for drafter in row.drafting.drafters}
    is_quiet = not drafters or step.lets_drafts_wait
    for name in step.order(list(drafters)):
        drafter = drafters[name]
        comes_later = is_begun and not _reads_text_alone(drafter)
        asked = [
            index
            for index, row in awake
            if row.drafting.pace.room > 1  # the target adds a token of its own
            and name in row.drafting.opened
            and _is_asked(index, row, drafter, trees[index], step, prepares=not comes_later)
        ]
        is_quiet = is_quiet and not (comes_later and asked)
        if comes_later or not asked:
            continue
        for index in asked:
            priced = rows[index].drafting.opened[name].priced
            if priced is not None:
                priced.prices = step.prices(index, name)
        asking = time.perf_counter()
        proposed = _ask(drafter, [rows[index] for index in asked], max_nodes, vocab_size)
        seconds = (time.perf_counter() - asking) / len(asked)
        for index, tree in zip(asked, proposed, strict=True):
            before = trees[index]
            if tree is not None:
                cut = fit(tree.cut(settings.depth_of(rows[index])))
                trees[index] = cut if before.num_nodes == 1 else fit(before.merge(cut))
            step.learn(index, name, before, trees[index], seconds)
    drafts = [tree.prune(max_nodes) for tree in trees]
    if is_begun:
        is_quiet = not step.drop(drafts) and is_quiet
        drafts = roots
    cut_trees = step.cut(drafts)
    is_quiet = is_quiet and all(tree.num_nodes == 1 for tree in cut_trees)
    step.spent(time.perf_counter() - begun)
    return Proposed(step, cut_trees, is_quiet)


def _reads_text_alone(drafter: Drafter) -> bool:
    # As isinstance says of a TextDrafter, in ten microseconds: too many for what each step asks.
    return bool(getattr(drafter, "reads_text_alone", False))


def _is_asked(
    index: int, row: Drafted, drafter: Drafter, tree: TokenTree, step: Step, *, prepares: bool
) -> bool:
    """Whether the drafter is asked for the row. If so, and if it `prepares`, its session is
    prepared: rows are, one after the other, as what each of them takes bears on the next one."""
    drafting, name = row.drafting, drafter.name
    priced = drafting.opened[name].priced
    least_s = None if priced is None else priced.least_s
    if not step.asks(index, name, tree, least_s=least_s):
        return False
    due = drafting.preparation(name, len(row.tokens))
    if due is not None:
        may_prepare = step.prepares(index, name, due)
        if may_prepare and prepares:
            step.prepared(index, name, due, drafting.prepare(drafter, row.tokens))
        elif not (may_prepare or due.can_wait):
            return False
    return name in drafting.opened  # it may have failed


def _ask(
    drafter: Drafter, rows: Sequence[Drafted], budget: int, vocab_size: int
) -> list[TokenTree | None]:
    """The drafter's tree for each row; None for one that it failed at."""
    name = drafter.name
    sessions = [row.drafting.opened[name].session for row in rows]
    answers = ask_each(
        drafter,
        sessions,
        [TokenView(row.tokens) for row in rows],
        budget,
        together=not any(name in row.drafting.alone for row in rows),
    )
    if answers.failure is not None:
        _tell_apart(rows, name, answers.failure)
    trees = [
        tree if isinstance(tree, Exception) else _checked(row, tree, budget, vocab_size)
        for row, tree in zip(rows, answers.trees, strict=True)
    ]
    failures = [(row, e) for row, e in zip(rows, trees, strict=True) if isinstance(e, Exception)]
    failed = Counter(_shown(error) for _, error in failures)
    for row, error in failures:
        row.drafting.leave_out(name, error, rows=failed.pop(_shown(error), 0))
    return [None if isinstance(tree, Exception) else tree for tree in trees]


def _tell_apart(rows: Sequence[Drafted], name: str, failure: Exception) -> None:
    """The drafter failed for all rows together, and for none of them alone: so it is asked for each
    of them from now on."""
    logger.warning(
        "drafter %s failed for %d requests together (%s: %s), and for none of them alone; it is "
        "asked for one after the other from now on, which takes longer",
        name,
        len(rows),
        type(failure).__name__,
        failure,
        exc_info=failure,
    )
    for row in rows:
        row.drafting.alone.add(name)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _checked(row: Drafted, tree: TokenTree, budget: int, vocab_size: int) -> TokenTree | Exception:
    """The tree, or what is wrong with it."""
    try:
        tree.check_integrity(vocab_size)
    except Exception as error:  # whatever is wrong with a foreign drafter's tree
        return error
    if tree.tokens[0] != row.tokens[-1]:
        return ValueError(f"node 0 is {tree.tokens[0]}, the last token {row.tokens[-1]}")
    if row.drafting.pace.keeps_trees and tree.num_nodes - 1 > budget:
        return ValueError(
            f"{tree.num_nodes - 1} drafted nodes, expected at most {budget}: what was drawn "
            "cannot be pruned under this verifier"
        )
    return tree
