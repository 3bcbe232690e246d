"""DatastoreWriter: adds and deletes documents; one writer at a time, readers never wait.

Files are written under new names and never changed; the manifest is replaced last. So a reader sees
the state before or the state after, and whatever a killed writer leaves behind is either gone on
with or swept away by the next one.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from mmspec.errors import DatastoreError
from mmspec.retrieval.appender import Appender
from mmspec.retrieval.corpus import SUFFIXES, Document, TokenFormat
from mmspec.retrieval.deleting import without_documents
from mmspec.retrieval.dense_keys import KeyBatch, with_keys, without_keys
from mmspec.retrieval.files import full_disk_told
from mmspec.retrieval.journal import JOURNAL, Journal, read_journal, write_journal
from mmspec.retrieval.manifest import MANIFEST, Manifest, commit_manifest, read_manifest
from mmspec.retrieval.merging import with_segments, without_deleted
from mmspec.retrieval.segment import stem_of
from mmspec.retrieval.store_folder import locked, make_folder, sweep

SEGMENT_TOKENS = 2**24  # sorted in one piece: some 0.8 GB of memory


class DatastoreWriter:
    """Writes one datastore; holds its lock until it is closed.

        with DatastoreWriter.create(folder, tokenizer=..., vocab_size=...) as writer:
            done = writer.begin(inputs="what the documents are")
            for document in documents[done:]:
                writer.append(document)
            writer.commit()

    Killed and run again with the same inputs it goes on where it was, and the folder it finishes
    is the same, byte for byte, but for the times in the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, lock: FileLock) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        self._appender: Appender | None = None
        self._has_failed = False  # half-way through adding

    @classmethod
    def create(
        cls, folder: str | Path, *, tokenizer: str, vocab_size: int, target: str = ""
    ) -> "DatastoreWriter":
        """A new datastore, or the unfinished or finished one that was begun there for the same
        tokenizer. The folder gets its manifest with the first commit.

        Raises DatastoreError: another writer is at work, the folder holds something else.
        """
        TokenFormat.of(vocab_size)
        path = Path(folder)
        make_folder(path)

        def manifest() -> Manifest:
            if not (path / MANIFEST).exists():
                return Manifest(tokenizer=tokenizer, vocab_size=vocab_size, target=target)
            found = read_manifest(path)
            found.check_fit(path, tokenizer=tokenizer, vocab_size=vocab_size)
            return found

        return cls._locked(path, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> "DatastoreWriter":
        """A datastore that is there. Raises DatastoreError: there is none, or another writer is at
        work on it."""
        path = Path(folder)
        read_manifest(path)  # before a lock is made in a folder that is none of ours
        return cls._locked(path, lambda: read_manifest(path))

    @classmethod
    def _locked(cls, folder: Path, manifest: Callable[[], Manifest]) -> "DatastoreWriter":
        lock = locked(folder)
        try:
            writer = cls(folder, manifest(), lock)
            writer._tidy(writer._unfinished())
            return writer
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "DatastoreWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back. What was appended and not committed waits for the same inputs."""
        self._stop_adding()
        self._lock.release()

    def begin(
        self, *, inputs: str = "", segment_tokens: int = SEGMENT_TOKENS, fresh: bool = False
    ) -> int:
        """Begins to add documents, or goes on; returns how many of them are in already.

        `inputs` describes the documents (a hash of their sources, say); the same text means the
        same documents in the same order. "" never goes on. Also where the last commit added these
        very inputs: then all of them are in. `fresh` drops what is unfinished.

        Raises DatastoreError where the unfinished add was given other inputs.
        """
        if not 2 <= segment_tokens < 2**32 - 1:
            raise DatastoreError(f"segment_tokens={segment_tokens}: expected 2 .. 2^32 - 2")
        self._stop_adding()
        with full_disk_told(self.folder):
            journal = self._unfinished()
            if journal is not None and (fresh or not journal.inputs or not inputs):
                journal = None
                self._forget_journal()
            if journal is None and inputs and inputs == self.manifest.inputs:
                return self.manifest.num_documents
            new = Journal(
                inputs,
                self.manifest.generation,
                self.manifest.tokenizer,
                self.manifest.vocab_size,
                segment_tokens,
                next_number=self.manifest.next_number,
                next_position=self.manifest.next_position,
            )
            if journal is None:
                journal = new
                write_journal(self.folder, new)
            elif not journal.continues(new):
                raise DatastoreError(
                    f"{self.folder}: an unfinished build is waiting here, of other documents or "
                    "settings than these; run it with what it began with, or drop it: fresh=True, "
                    "--fresh"
                )
            self._tidy(journal)
            self._appender = Appender(self.folder, journal, before=self.manifest.segments)
        return journal.num_documents

    @property
    def is_adding(self) -> bool:
        """Whether `begin` has found anything left to append."""
        return self._appender is not None

    def earlier(self, name: str) -> list[int] | None:
        """The tokens, -1 for separators, that the last commit has under this id; None: there is
        none. Between `begin` and `commit`."""
        return None if self._appender is None else self._appender.earlier(name)

    def append(self, document: Document) -> None:
        """Adds one document. It counts when `commit` has returned.

        Raises DatastoreError: an id that is there already, a token that is no integer or outside of
        the vocabulary; or no room on the disk: after that, as after any other error, `begin` again.
        """
        if self._appender is None:
            raise RuntimeError("append() before begin(), or when all of the inputs are in")
        tokens = self._appender.checked(document)
        with self._adding():
            self._appender.append(document, tokens)

    def commit(self) -> Manifest:
        """Makes what was appended part of the datastore, all of it at once. Raises DatastoreError:
        no room on the disk, or adding failed before."""
        if self._appender is None:
            return self.manifest
        with self._adding():
            journal = self._appender.finish()
            manifest = replace(
                self.manifest,
                next_number=journal.next_number,
                next_position=journal.next_position,
                inputs=journal.inputs,
            )
            segments = (*self.manifest.segments, *journal.finished)
            self._commit(
                with_segments(self.folder, manifest, segments, limit=journal.segment_tokens)
            )
        self._appender = None
        return self.manifest

    def delete(self, ids: Iterable[str]) -> int:
        """Deletes the documents with these ids, and returns how many. Nothing finds them any more;
        their tokens stay in the shards' files until these are merged or purged.

        Raises DatastoreError where an id is not there (nothing is deleted then), or an add is
        unfinished.
        """
        self._refuse_unfinished()
        wanted = frozenset(ids)
        with full_disk_told(self.folder):
            deletion = without_documents(self.folder, self.manifest, wanted)
            if wanted - deletion.found:
                missing = ", ".join(repr(name) for name in sorted(wanted - deletion.found)[:3])
                self._tidy(None)
                raise DatastoreError(
                    f"{self.folder}: no document with id {missing}; `mmspec index info "
                    "--documents` lists them. Nothing was deleted"
                )
            if deletion.found:
                self._commit(without_keys(self.folder, deletion.manifest, deletion.positions))
        return len(deletion.found)

    def purge(self) -> None:
        """Takes the deleted documents' tokens off the disk. Raises DatastoreError."""
        self._refuse_unfinished()
        if any(segment.deleted for segment in self.manifest.segments):
            with full_disk_told(self.folder):
                self._commit(without_deleted(self.folder, self.manifest))

    def add_keys(
        self,
        batches: Iterable[KeyBatch],
        *,
        dim: int,
        fingerprint: str,
        probe: Sequence[float] = (),
        expected: int = 0,
    ) -> None:
        """Adds hidden states to the dense index, or begins it, in one commit.

        `fingerprint` names the weights that made them and `probe` is a hidden state (dim,) of some
        text that the caller can make again: `Datastore.check_target` compares both. `expected`
        keys in all lay the index out for so many. Adding in the order of positions, one can go on
        after a stop from the manifest's `dense.next_position`.

        Raises DatastoreError where the keys that are there came from other weights.
        """
        self._refuse_unfinished()
        with full_disk_told(self.folder):
            manifest = with_keys(
                self.folder,
                self.manifest,
                batches,
                dim=dim,
                fingerprint=fingerprint,
                probe=probe,
                expected=expected,
            )
            if manifest != self.manifest:
                self._commit(manifest)

    def _stop_adding(self) -> None:
        """Appends no more. Before another begins: what this one has in memory it writes now."""
        if self._appender is not None:
            self._appender.close()
            self._appender = None
        self._has_failed = False

    @contextlib.contextmanager
    def _adding(self) -> Iterator[None]:
        """What stopped half-way, by whatever error, is never gone on with from memory."""
        if self._has_failed:
            raise DatastoreError(
                f"{self.folder}: adding failed half-way; begin() again, which goes on from what is "
                "safe on the disk"
            )
        with full_disk_told(self.folder):
            try:
                yield
            except BaseException:
                self._has_failed = True
                raise

    def _unfinished(self) -> Journal | None:
        journal = read_journal(self.folder)
        if journal is None:
            return None
        is_committed = journal.generation != self.manifest.generation  # killed before it tidied up
        if is_committed or journal.is_empty:
            (self.folder / JOURNAL).unlink()
            return None
        return journal

    def _refuse_unfinished(self) -> None:
        if self._appender is not None or self._unfinished() is not None:
            raise DatastoreError(
                f"{self.folder}: an unfinished add is waiting here; run it again to finish it, or "
                "begin another with --fresh"
            )

    def _commit(self, manifest: Manifest) -> None:
        try:
            self.manifest = commit_manifest(self.folder, manifest)
        except BaseException:
            if (self.folder / MANIFEST).exists():  # the new one, where it failed behind that
                self.manifest = read_manifest(self.folder)
            raise
        self._forget_journal()

    def _forget_journal(self) -> None:
        """Nothing is unfinished any more, and what it left behind is off the disk."""
        (self.folder / JOURNAL).unlink(missing_ok=True)
        self._tidy(None)

    def _tidy(self, journal: Journal | None) -> None:
        """Deletes files of ours that neither the manifest nor the journal knows."""
        kept = {file.name for file in self.manifest.files}
        if journal is not None:
            kept |= {file.name for record in journal.finished for file in record.files}
            if journal.current:
                kept |= {stem_of(self.folder, journal.current).name + s for s in SUFFIXES}
        sweep(self.folder, kept)
