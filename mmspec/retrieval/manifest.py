"""The manifest: the one file that says what a datastore holds, replaced whole at each commit."""

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from mmspec.errors import DatastoreError
from mmspec.retrieval.files import FileRecord, write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
_MENDED = "restore the folder from a copy, or build the datastore again"


@dataclass(frozen=True)
class SegmentRecord:
    """A shard and its suffix array."""

    number: int  # names its files: 000007.tokens, ...
    num_tokens: int  # of all documents, separators not counted
    deleted: tuple[int, ...]  # documents that are marked as deleted
    num_documents: int  # the deleted ones not counted
    num_places: int  # that the suffix array holds
    files: tuple[FileRecord, ...]


@dataclass(frozen=True)
class DenseRecord:
    """The dense index, and whose hidden states its keys are."""

    num_keys: int
    dim: int
    fingerprint: str  # of the target's weights, as the caller made it
    probe: tuple[float, ...]  # a hidden state of the target, or ()
    next_position: int  # one more than the last position that has a key
    file: FileRecord


@dataclass(frozen=True)
class Manifest:
    """A datastore at one commit."""

    tokenizer: str  # hash of the tokenizer that made the tokens
    vocab_size: int
    target: str  # the model's name, for people
    segments: tuple[SegmentRecord, ...] = ()
    dense: DenseRecord | None = None
    generation: int = 0  # commits so far
    next_number: int = 1
    next_position: int = 0
    inputs: str = ""  # what was added last, as the caller described it
    created: str = ""
    updated: str = ""
    format: int = FORMAT

    @property
    def num_tokens(self) -> int:
        return sum(segment.num_tokens for segment in self.segments)

    @property
    def num_documents(self) -> int:
        return sum(segment.num_documents for segment in self.segments)

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """All files but the manifest itself."""
        found = [file for segment in self.segments for file in segment.files]
        return (*found, self.dense.file) if self.dense else tuple(found)

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def check_fit(self, folder: Path, *, tokenizer: str | None, vocab_size: int | None) -> None:
        """Raises DatastoreError where the datastore was made for another tokenizer."""
        if tokenizer is not None and tokenizer != self.tokenizer:
            raise DatastoreError(
                f"{folder}: this datastore was made with another tokenizer: got {tokenizer}, it "
                f"holds tokens of {self.tokenizer} (target {self.target!r}); build one for this "
                "target"
            )
        if vocab_size is not None and vocab_size < self.vocab_size:
            raise DatastoreError(
                f"{folder}: this datastore's tokens go up to {self.vocab_size - 1}, the target's "
                f"vocabulary has {vocab_size}; build a datastore for this target"
            )


def read_manifest(folder: Path) -> Manifest:
    """Raises DatastoreError where there is none, or not one that this version reads."""
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatastoreError(
            f"{folder}: no datastore here: expected a folder with {MANIFEST}; `mmspec index build` "
            "makes one"
        ) from error
    except NotADirectoryError as error:
        raise DatastoreError(f"{folder}: a datastore is a folder, this is a file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatastoreError(f"{path}: is not JSON ({error}); {_MENDED}") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise DatastoreError(
            f"{path}: got format {version!r}, this version of mmspec reads format {FORMAT}; build "
            "the datastore again, or use the version of mmspec that made it"
        )
    try:
        return _parsed(values)
    except (KeyError, TypeError, ValueError) as error:
        raise DatastoreError(f"{path}: is not a manifest ({error!r}); {_MENDED}") from error


def commit_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Makes `manifest`, with the next generation and the time, the datastore's. Raises OSError."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    committed = replace(
        manifest,
        generation=manifest.generation + 1,
        created=manifest.created or now,
        updated=now,
    )
    text = json.dumps(asdict(committed), indent=1) + "\n"
    write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))
    return committed


def _parsed(values: dict[str, object]) -> Manifest:
    given = dict(values)
    segments = cast(list[dict[str, object]], given.pop("segments"))
    dense = cast(dict[str, object] | None, given.pop("dense"))
    _check_keys(given, Manifest, but=("segments", "dense"))
    manifest = Manifest(
        **given,  # type: ignore[arg-type]
        segments=tuple(parse_segment(segment) for segment in segments),
        dense=_dense(dense) if dense else None,
    )
    counts = (manifest.vocab_size, manifest.generation, manifest.next_number)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"counts {counts}")
    return manifest


def parse_segment(values: dict[str, object]) -> SegmentRecord:
    """From JSON. Raises KeyError, TypeError or ValueError for anything else."""
    given = dict(values)
    files = cast(list[dict[str, object]], given.pop("files"))
    given["deleted"] = tuple(cast(list[int], given["deleted"]))
    _check_keys(given, SegmentRecord, but=("files",))
    return SegmentRecord(**given, files=tuple(map(_file, files)))  # type: ignore[arg-type]


def _dense(values: dict[str, object]) -> DenseRecord:
    given = dict(values)
    file = _file(cast(dict[str, object], given.pop("file")))
    given["probe"] = tuple(cast(list[float], given["probe"]))
    _check_keys(given, DenseRecord, but=("file",))
    return DenseRecord(**given, file=file)  # type: ignore[arg-type]


def _file(values: dict[str, object]) -> FileRecord:
    _check_keys(values, FileRecord)
    record = FileRecord(**values)  # type: ignore[arg-type]
    if Path(record.name).name != record.name:  # nothing outside of the folder is read
        raise ValueError(f"file name {record.name!r}")
    return record


def _check_keys(given: dict[str, object], kind: type, *, but: tuple[str, ...] = ()) -> None:
    expected = {field.name for field in fields(kind)} - set(but)
    if given.keys() != expected:
        raise ValueError(f"{kind.__name__}: keys {sorted(given.keys() ^ expected)}")
