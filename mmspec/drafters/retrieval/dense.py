"""DenseSource: a datastore by hidden states, as kNN-LM has it (arXiv 1911.00172).

The state that the token just chosen came from has been computed anyway. Places whose own states
were like it, and where the same token followed, may go on alike: also where no words agree, as
between an image and a text.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mmspec.drafters.retrieval.source import Query
from mmspec.errors import DatastoreError
from mmspec.retrieval import Continuation, Datastore
from mmspec.retrieval.continuations import MAX_PLACES
from mmspec.target import Target
from mmspec.target.fingerprint import probe_state, states_fingerprint, tap_of

_MAX_MATCH = 32  # tokens before a neighbour that are compared with the text's end


class DenseSource:
    """A datastore's dense index, for the target whose hidden states it holds."""

    name = "dense"

    def __init__(self, store: Datastore, target: Target, *, num_neighbours: int = 64) -> None:
        """`num_neighbours` are looked up for a row, of which those count that the token just chosen
        followed. Raises DatastoreError where there is no dense index, or one of another target."""
        dense = store.manifest.dense
        if dense is None:
            raise DatastoreError(
                f"{store.folder}: this datastore has no dense index; `mmspec index build --dense` "
                "makes one"
            )
        try:
            tap = tap_of(dense.fingerprint)
        except ValueError as error:
            raise DatastoreError(
                f"{store.folder}: its dense index was not made by `mmspec index`: its fingerprint "
                f"{dense.fingerprint!r} names no layer; collect it with mmspec.indexing"
            ) from error
        fingerprint = states_fingerprint(target, tap=tap)
        probe = probe_state(target, tap=tap) if fingerprint == dense.fingerprint else ()
        store.check_target(fingerprint=fingerprint, probe=probe)
        self.taps = (tap,)
        self._store = store
        self._num_neighbours = num_neighbours

    def find(self, queries: Sequence[Query], *, length: int) -> list[list[Continuation]]:
        """One look-up for all rows; a row whose state is not known yet finds nothing."""
        (tap,) = self.taps
        known = [n for n, query in enumerate(queries) if tap in query.hidden and query.tail]
        found: list[list[Continuation]] = [[] for _ in queries]
        if not known:
            return found
        states = torch.stack([queries[n].hidden[tap] for n in known]).float().cpu().numpy()
        nearest = self._store.nearest(states, limit=self._num_neighbours)
        tokens = self._store.tokens_at(nearest.positions.reshape(-1))
        chosen = np.array([[queries[n].tail[-1]] for n in known])
        agrees = tokens.reshape(nearest.positions.shape) == chosen
        for row, n in enumerate(known):
            places = np.flatnonzero(agrees[row])[:MAX_PLACES]
            found[n] = [
                self._continuation(
                    int(nearest.positions[row, at]),
                    float(nearest.distances[row, at]),
                    queries[n].tail,
                    length,
                )
                for at in places
            ]
        return found

    def _continuation(
        self, position: int, distance: float, tail: Sequence[int], length: int
    ) -> Continuation:
        """What followed the token at `position`, which is the one just chosen."""
        place = self._store.place_of(position)
        if place is None:
            return Continuation([], 0, self.name, distance)
        tokens = self._store.tokens_from(place, length + 1)[1:]
        before = self._store.tokens_before(place, _MAX_MATCH)
        pairs = zip(reversed(before), reversed(tail[:-1]), strict=False)
        match = next(
            (n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(tail) - 1)
        )
        return Continuation(tokens, match + 1, self.name, distance)

    def was_useful(self, continuation: Continuation) -> None:
        """A corpus forgets nothing."""

    def refresh(self) -> None:
        """A datastore with new keys is another source: its target is checked as it is opened."""
