"""Datastore: a folder with a manifest, opened for look-ups.

Everything is memory-mapped, so it opens in milliseconds whatever its size. What is open stays as it
was when it was opened: a writer that adds or deletes meanwhile is not seen until `latest`, and when
the folder is deleted, the mapped files live on as long as the datastore object does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmspec.errors import DatastoreError
from mmspec.retrieval.dense_index import DenseIndex
from mmspec.retrieval.exact_vectors import Keys, Neighbours
from mmspec.retrieval.files import check_file, damaged
from mmspec.retrieval.lookups import Lookups
from mmspec.retrieval.manifest import Manifest, read_manifest
from mmspec.retrieval.segment import Segment

VERIFY_BYTES = 64 * 2**20  # datastores up to this size are checked in full when they are opened
_PROBE_COSINE = 0.999  # the same weights in another precision reach it


class Datastore(Lookups):
    """Look-ups in a corpus: exact by its tokens, and by hidden states where it has them."""

    def __init__(self, folder: Path, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """Use `open`."""
        super().__init__(segments, vocab_size=manifest.vocab_size)
        self.folder = folder
        self.manifest = manifest
        self._dense: DenseIndex | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        tokenizer: str | None = None,
        vocab_size: int | None = None,
        verify: bool | None = None,
    ) -> "Datastore":
        """Opens a datastore, if it fits the target's `tokenizer` (its hash) and `vocab_size`.

        `verify=None` compares the checksum of every file up to 64 MB in all, and only their sizes
        above that; True and False decide it. A dense index is always compared before it is read.

        Raises DatastoreError: no datastore, another format, a damaged file, another tokenizer, a
        vocabulary too small.
        """
        path = Path(folder)
        manifest = read_manifest(path)
        while True:
            manifest.check_fit(path, tokenizer=tokenizer, vocab_size=vocab_size)
            in_full = manifest.num_bytes <= VERIFY_BYTES if verify is None else verify
            try:
                for file in manifest.files:
                    check_file(path, file, contents=in_full)
                segments = [
                    Segment(path, record, vocab_size=manifest.vocab_size)
                    for record in manifest.segments
                ]
                return cls(path, manifest, segments)
            except FileNotFoundError as error:
                # A writer may have replaced the file after the manifest was read.
                manifest, before = read_manifest(path), manifest
                if manifest == before:
                    raise damaged(f"{error.filename}: this file is gone") from error

    def latest(self) -> "Datastore":
        """This datastore as it is on the disk now: itself where nothing was committed since. A
        dense index that is open is open there too, and read again only where it has changed.

        Raises DatastoreError where the folder is gone or a file is damaged, and MissingExtraError
        where faiss is missing; this one goes on working.
        """
        if read_manifest(self.folder) == self.manifest:
            return self
        store = Datastore.open(
            self.folder, tokenizer=self.manifest.tokenizer, vocab_size=self.manifest.vocab_size
        )
        if store.manifest.dense == self.manifest.dense:
            store._dense = self._dense
        elif self._dense is not None:
            store._dense = store._opened_dense()
        return store

    # By hidden states.

    def check_target(self, *, fingerprint: str, probe: Sequence[float] = ()) -> None:
        """Refuses a target whose hidden states are not those of the dense index.

        `fingerprint` is the one it was built with; `probe`, if both have one, is the hidden state
        of the text that the builder took: their cosine has to be 0.999 at least. Raises
        DatastoreError; also where there is no dense index.
        """
        dense = self.manifest.dense
        if dense is None:
            raise DatastoreError(f"{self.folder}: this datastore has no dense index")
        if dense.fingerprint != fingerprint:
            raise DatastoreError(
                f"{self.folder}: its dense index holds hidden states of other weights: got "
                f"{fingerprint}, it was built with {dense.fingerprint}; build it for this target"
            )
        if dense.probe and len(probe):
            if len(probe) != len(dense.probe):
                cosine = 0.0
            else:
                a, b = np.asarray(probe, float), np.asarray(dense.probe, float)
                cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
            if not cosine >= _PROBE_COSINE:
                raise DatastoreError(
                    f"{self.folder}: the target's hidden state of the probe is not the dense "
                    f"index's: got cosine {cosine:.4f}, expected {_PROBE_COSINE} at least; are "
                    "these the weights, adapters and layer that it was built with?"
                )

    @property
    def dense(self) -> DenseIndex | None:
        """The dense index, opened when first asked for, after its checksum. None where there is
        none. Raises DatastoreError, and MissingExtraError where faiss is missing."""
        if self._dense is None:
            self._dense = self._opened_dense()
        return self._dense

    def _opened_dense(self) -> DenseIndex | None:
        record = self.manifest.dense
        if record is None:
            return None
        try:
            check_file(self.folder, record.file, contents=True)
            return DenseIndex.open(self.folder / record.file.name, dim=record.dim)
        except FileNotFoundError as error:
            raise self._gone(error) from error

    def nearest(self, queries: Keys, *, limit: int = 32) -> Neighbours:
        """The positions nearest to hidden states (rows, dim), for all rows of a batch in one go.
        Raises DatastoreError where there is no dense index."""
        dense = self.dense
        if dense is None:
            raise DatastoreError(f"{self.folder}: this datastore has no dense index")
        return dense.search(queries, limit=limit)

    # The whole.

    def check_integrity(self) -> None:
        """Checksums, tables, counts and the suffix arrays' order (sampled). Raises DatastoreError,
        naming the file or segment."""
        for file in self.manifest.files:
            try:
                check_file(self.folder, file, contents=True)
            except FileNotFoundError as error:
                raise self._gone(error) from error
        for segment in self.segments:
            segment.check_integrity()

    def _gone(self, error: FileNotFoundError) -> DatastoreError:
        """For a file that was there when this datastore was opened."""
        if read_manifest(self.folder) == self.manifest:
            return damaged(f"{error.filename}: this file is gone")
        return DatastoreError(
            f"{error.filename}: a writer has replaced this file since the datastore was opened; "
            "open it anew (`latest()`)"
        )
