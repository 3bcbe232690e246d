"""DenseSource: what followed where the target was in a like state, as in kNN-LM (arXiv 1911.00172).

The state that the token just chosen came from has been computed anyway. Where the target was in
nearly the same one, and the same token followed, the text may go on alike: also where no words
agree yet, as when it reads them from a picture.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mmspec.beginnings import num_shared
from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query, Source
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.errors import DatastoreError
from mmspec.retrieval import Continuation, Datastore
from mmspec.retrieval.exact_vectors import Keys
from mmspec.target import Target
from mmspec.target.fingerprint import probe_state, states_fingerprint, tap_of

_NEIGHBOURS = 4  # looked up for each place that is wanted: another token may have followed them


class _Index(NamedTuple):
    """A datastore's dense index, which the target was seen to fit."""

    store: OpenStore
    fingerprint: str
    tap: int

    @property
    def current(self) -> Datastore | None:
        """The datastore, unless it has lost its dense index, or got another target's."""
        dense = self.store.current.manifest.dense
        has_it = dense is not None and dense.fingerprint == self.fingerprint
        return self.store.current if has_it else None


class DenseSource(Source):
    """The dense indexes of one or several datastores, for the target whose states they hold."""

    name = "dense"

    def __init__(self, stores: Sequence[OpenStore], target: Target, limits: Limits) -> None:
        """Raises DatastoreError where one has no dense index, or one of another target."""
        self._indexes = [_fitting(store, target) for store in stores]
        self._limits = limits
        self.taps: Sequence[int] = sorted({index.tap for index in self._indexes})

    def find(self, queries: Sequence[Query], *, length: int) -> list[list[Continuation]]:
        """One look-up for all rows; a row whose state is not known finds nothing."""
        found: list[list[Continuation]] = [[] for _ in queries]
        for index in self._indexes:
            store = index.current
            asked = [n for n, query in enumerate(queries) if index.tap in query.hidden]
            if store is None or not asked:
                continue
            states = torch.stack([queries[n].hidden[index.tap] for n in asked])
            tails = [queries[n].tail for n in asked]
            rows = self._nearest(store, states.float().cpu().numpy(), tails, length)
            for n, row in zip(asked, rows, strict=True):
                found[n] += row
        return [sorted(row, key=_distance)[: self._limits.max_places] for row in found]

    def _nearest(
        self, store: Datastore, states: Keys, tails: Sequence[Sequence[int]], length: int
    ) -> list[list[Continuation]]:
        """Of each state (rows, dim), what followed the nearest places that its tail's last token
        came after."""
        limit = self._limits.max_places
        nearest = store.nearest(states, limit=_NEIGHBOURS * limit)
        tokens = store.tokens_at(nearest.positions.reshape(-1)).reshape(nearest.positions.shape)
        return [
            [
                self._continuation(
                    store,
                    int(nearest.positions[row, at]),
                    float(nearest.distances[row, at]),
                    tail,
                    length,
                )
                for at in np.flatnonzero(tokens[row] == tail[-1])[:limit]
            ]
            for row, tail in enumerate(tails)
        ]

    def _continuation(
        self, store: Datastore, position: int, distance: float, tail: Sequence[int], length: int
    ) -> Continuation:
        """What followed the token at `position`, which is the one just chosen."""
        place = store.place_of(position)
        if place is None:
            return Continuation([], 0, self.name, distance)
        tokens = store.tokens_from(place, length + 1)[1:]
        before = store.tokens_before(place, self._limits.max_match - 1)
        match = 1 + num_shared(before[::-1], tail[-2::-1])
        return Continuation(tokens, match, self.name, distance)

    def refresh(self) -> None:
        for index in self._indexes:
            index.store.refresh()


def _fitting(store: OpenStore, target: Target) -> _Index:
    """Raises DatastoreError where its dense index is not the target's."""
    current = store.current
    dense = current.manifest.dense
    if dense is None:
        raise DatastoreError(
            f"{current.folder}: this datastore has no dense index; `mmspec index build --dense` "
            "makes one"
        )
    try:
        tap = tap_of(dense.fingerprint)
    except ValueError as error:
        raise DatastoreError(
            f"{current.folder}: got a dense index with the fingerprint {dense.fingerprint!r}, "
            "which names no layer; expected one that mmspec.indexing has collected"
        ) from error
    fingerprint = states_fingerprint(target, tap=tap)
    probe = probe_state(target, tap=tap) if fingerprint == dense.fingerprint else ()
    current.check_target(fingerprint=fingerprint, probe=probe)
    assert current.dense is not None  # opened here, so that what is wrong with it is said here
    return _Index(store, fingerprint, tap)


def _distance(continuation: Continuation) -> float:
    assert continuation.distance is not None
    return continuation.distance
