"""Collecting: a target reads a datastore's documents, and its hidden states become the dense index.

Interrupted, the same call goes on behind the last commit.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Protocol

from mmspec.errors import DatastoreError
from mmspec.retrieval import Datastore, DatastoreWriter, KeyBatch
from mmspec.retrieval.corpus import DocumentName
from mmspec.retrieval.manifest import Manifest
from mmspec.retrieval.places import StoredDocument
from mmspec.target import Target
from mmspec.target.fingerprint import probe_state, states_fingerprint

COMMIT_KEYS = 2**16

Progress = Callable[[int, int], None]  # told of positions done, and of all there are


class Reader(Protocol):
    """How the target reads documents."""

    def read(self, documents: Iterable[StoredDocument], start: int) -> Iterator[KeyBatch]:
        """The keys of positions from `start` on, in their order."""


class MixedReader:
    """Documents with a prompt of their own by one reader, those without by another."""

    def __init__(
        self, prompted: Reader, others: Reader, *, has_prompt: Callable[[DocumentName], bool]
    ) -> None:
        self._readers = {True: prompted, False: others}
        self._has_prompt = has_prompt

    def read(self, documents: Iterable[StoredDocument], start: int) -> Iterator[KeyBatch]:
        """The keys of positions from `start` on, in their order."""
        for kind, group in groupby(documents, lambda one: self._has_prompt(one.name)):
            yield from self._readers[kind].read(group, start)


def collect_keys(
    folder: str | Path,
    target: Target,
    reader: Reader,
    *,
    tap: int | None = None,
    commit_keys: int = COMMIT_KEYS,
    on_progress: Progress | None = None,
) -> Manifest:
    """Adds the keys of all documents that have none yet to the datastore's dense index.

    `tap` (the last one by default) is the layer that `reader` reads, too. Every `commit_keys` keys
    are committed, later more of them at once, since a commit writes the index anew: what a killed
    call has committed is there, and another call goes on behind it. Readers of the datastore are
    not in the way.

    Raises DatastoreError: another writer, an unfinished add, a dense index of other weights or of
    another layer.
    """
    layer = target.last_tap if tap is None else tap
    probe = probe_state(target, tap=layer)
    fingerprint = states_fingerprint(target, tap=layer)
    with DatastoreWriter.open(folder) as writer:
        store, total, start = Datastore.open(folder, verify=False), writer.manifest.next_position, 0
        if store.manifest.dense is not None:
            store.check_target(fingerprint=fingerprint, probe=probe)
            start = store.manifest.dense.next_position
        elif store.manifest.num_tokens == 0:
            raise DatastoreError(f"{folder}: holds no documents; expected one at least to read")
        batches = reader.read(store.documents_from(start), start)
        for first in batches:
            dense = writer.manifest.dense
            least = max(commit_keys, (dense.num_keys if dense else 0) // 4)
            some = _some(chain([first], batches), least, total, on_progress)
            writer.add_keys(
                some,
                dim=len(probe),
                fingerprint=fingerprint,
                probe=probe,
                expected=writer.manifest.num_tokens,
            )
        return writer.manifest


def _some(
    batches: Iterable[KeyBatch], least: int, total: int, on_progress: Progress | None
) -> Iterator[KeyBatch]:
    """Batches of `least` keys together, or all that are left."""
    count = 0
    for batch in batches:
        yield batch
        count += len(batch.positions)
        if on_progress is not None and len(batch.positions):
            on_progress(int(batch.positions[-1]) + 1, total)
        if count >= least:
            return
