"""The manifest: the one file that says what a datastore holds, replaced whole at each commit."""

import json
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mmspec.errors import DatastoreError
from mmspec.retrieval.files import FileRecord, damaged, write_atomically

FORMAT = 1
MANIFEST = "manifest.json"
T = TypeVar("T")


@dataclass(frozen=True)
class SegmentRecord:
    """A shard and its suffix array."""

    number: int  # names its files: 000007.tokens, ...
    num_tokens: int  # of all documents, separators not counted
    deleted: tuple[int, ...]  # documents that are marked as deleted
    num_documents: int  # the deleted ones not counted
    num_places: int  # that the suffix array holds
    files: tuple[FileRecord, ...]  # the shard's, and last the suffix array

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError(f"segment {self.number} has no files")


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
        raise damaged(f"{path}: is not JSON ({error})") from error
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise DatastoreError(
            f"{path}: got format {version!r}, this version of mmspec reads format {FORMAT}; build "
            "the datastore again, or use the version of mmspec that made it"
        )
    try:
        return parsed(Manifest, values)
    except ValueError as error:
        raise damaged(f"{path}: is not a manifest ({error!r})") from error


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


def parsed(kind: type[T], value: object) -> T:
    """A dataclass from JSON. Raises ValueError where a key is missing or not known, or a value is
    of another type."""
    hints = get_type_hints(kind)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        keys = sorted(value.keys() ^ hints.keys()) if isinstance(value, dict) else repr(value)
        raise ValueError(f"{kind.__name__}: {keys}")
    return kind(**{name: _value(hint, value[name], name) for name, hint in hints.items()})


def _value(kind: Any, value: object, name: str) -> object:
    """As the field `name` of a dataclass has it."""
    if isinstance(kind, UnionType):  # something or None
        return None if value is None else _value(get_args(kind)[0], value, name)
    if isinstance(kind, type) and is_dataclass(kind):
        return parsed(kind, value)
    if get_origin(kind) is tuple:  # of any length
        if isinstance(value, list):
            return tuple(_value(get_args(kind)[0], one, name) for one in value)
    elif hasattr(kind, "_fields"):  # a NamedTuple of numbers
        if isinstance(value, list) and len(value) == len(kind._fields):
            return kind(*(_value(int, one, name) for one in value))
    elif kind is int:
        if type(value) is int and value >= 0:
            return value
    elif isinstance(value, (int, float) if kind is float else kind):
        return value
    raise ValueError(f"{name}: {value!r}")
