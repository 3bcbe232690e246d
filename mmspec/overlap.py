"""Overlap: the device begins a plain step while the host still handles the one before.

Between two steps a device would have nothing to do while the host reads the tokens, ends texts,
hands them out, asks drafters and prepares the next forward. What a plain step needs of the tokens
before it are their ids alone, and those lie on the device:

    device  | step 7      | choose | step 8      | choose | step 9 ...
    host      ... launch step 8 -> | read 7, hand out, ask drafters, launch step 9 -> | read 8 ...

So behind a step of which nothing was drafted and scored, where each row's choice is found on the
device, the next forward is begun before the choices are read. Drafters are asked while it runs;
what they propose comes too late to be scored in it, so the step behind it is begun the usual way. A
row that turns out to have ended drops what was begun for it: it is never committed.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from mmspec.drafting import tapped_layers
from mmspec.foresight import Foresight, foresee
from mmspec.kv import KVCache
from mmspec.row import Row
from mmspec.state import Scores, Verdict
from mmspec.target import Target
from mmspec.tree import TokenTree
from mmspec.verify import Verifier


class _Begun(NamedTuple):
    """A plain step under way, of rows whose node 0 the host had not read yet."""

    rows: list[Row]
    scores: list[Scores]


class Overlap:
    """Scores the steps of a decode loop, and commits what was accepted; begins plain steps ahead
    of time where it `is_on`."""

    def __init__(self, target: Target, cache: KVCache, *, is_on: bool) -> None:
        self._target = target
        self._cache = cache
        self._is_on = is_on
        self._begun: _Begun | None = None
        self._is_committed = False  # the step that is verified, as the next one has begun

    @property
    def is_begun(self) -> bool:
        """Whether the next step is under way."""
        return self._begun is not None

    def rows(self, active: list[Row]) -> list[Row]:
        """Those of the next step: all, or those that it was begun for and that have not ended."""
        if self._begun is not None:
            kept = [pair for pair in zip(*self._begun, strict=True) if not pair[0].is_done]
            self._begun = _Begun(*map(list, zip(*kept, strict=True))) if kept else None
        return active if self._begun is None else self._begun.rows

    def score(self, rows: Sequence[Row], trees: Sequence[TokenTree]) -> list[Scores]:
        """Of the next step: of each row's tree, which is node 0 alone in a step that is begun."""
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun.scores
        for row in rows:
            if self._target.crosses(row.prompt, len(row.tokens) - 1):
                slot = row.placement.row
                row.attempt(partial(self._target.read_again, row.tokens, self._cache, slot))
        return self._target.score(
            trees, self._cache, [row.placement for row in rows], taps=tapped_layers(rows)
        )

    def verify(
        self, rule: Verifier, steps: Sequence[tuple[Row, TokenTree, Scores]], *, may_begin: bool
    ) -> list[Verdict | None]:
        """What each row accepts of its tree by `rule`; None for one that failed. `may_begin`: the
        step after this one is likely to be plain, and of the same rows."""
        foresight = foresee(rule, steps)
        if self._is_on and may_begin:
            self._begin([row for row, *_ in steps], foresight)
        foresight.tell()
        return [row.verify(rule, tree, scores) for row, tree, scores in steps]

    def commit(self, rows: Sequence[Row], verdicts: Sequence[Verdict | None]) -> None:
        """Keeps the accepted paths; what was not accepted is forgotten."""
        if not self._is_committed:
            accepted = zip(rows, verdicts, strict=True)
            self._cache.commit({row.placement.row: v.path for row, v in accepted if v is not None})
        self._is_committed = False

    def close(self) -> None:
        """Releases the cache, once nothing writes to it any more: what was begun may have been
        dropped, or have failed on its way, and another stream may have told the device of it."""
        try:
            if self._is_on and self._target.device.type == "cuda":
                torch.cuda.synchronize(self._target.device)
        finally:
            self._cache.release()

    def _begin(self, rows: list[Row], foresight: Foresight) -> None:
        """Commits node 0 of a plain step of `rows`, whose choices are those of `foresight`, and
        begins the next one, unless a row has no room for it, or needs the host to choose."""
        if any(row.room < 2 for row in rows):  # the tokens that are being chosen take one
            return
        if any(self._target.crosses(row.prompt, len(row.tokens)) for row in rows):
            return
        chosen = foresight.choices(rows)
        if chosen is None:
            return
        foresight.set_out()
        self._cache.commit({row.placement.row: (0,) for row in rows})
        self._is_committed = True
        scores = self._target.score(
            [TokenTree.root(0)] * len(rows),  # their tokens are in `chosen`
            self._cache,
            [row.placement for row in rows],
            taps=tapped_layers(rows),
            ids=chosen,
        )
        self._begun = _Begun(rows, scores)
