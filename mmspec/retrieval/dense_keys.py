"""A datastore's dense index, with keys added or without those of deleted documents."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mmspec.errors import DatastoreError
from mmspec.retrieval.dense_builder import DenseBuilder
from mmspec.retrieval.exact_vectors import Keys, Positions
from mmspec.retrieval.files import FileRecord, check_file, write_atomically
from mmspec.retrieval.manifest import DenseRecord, Manifest
from mmspec.retrieval.segment import stem_of


class KeyBatch(NamedTuple):
    """Hidden states of a target, and the positions of the tokens that follow them."""

    positions: Positions  # (rows,)
    keys: Keys  # (rows, dim)


def with_keys(
    folder: Path,
    manifest: Manifest,
    batches: Iterable[KeyBatch],
    *,
    dim: int,
    fingerprint: str,
    probe: Sequence[float],
    expected: int,
) -> Manifest:
    """Writes the index with the keys of `batches` added, as `DatastoreWriter.add_keys` is asked;
    the manifest as it is where there are no keys. Raises OSError, and DatastoreError where the keys
    that are there came from other weights."""
    record = manifest.dense
    if record is not None and (record.fingerprint, record.dim) != (fingerprint, dim):
        raise DatastoreError(
            f"{folder}: its dense index holds hidden states of other weights: got "
            f"{fingerprint} with {dim} values, expected {record.fingerprint} with {record.dim}"
        )
    builder = _opened(folder, record) if record else DenseBuilder(dim)
    last = record.next_position if record else 0
    for positions, keys in batches:
        builder.add(positions, keys, expected=expected)
        last = max(last, int(positions.max(initial=-1)) + 1)
    if len(builder) == 0:
        return manifest
    probe = tuple(float(value) for value in probe) or (record.probe if record else ())
    file = _written(folder, builder, manifest.next_number, expected=expected)
    dense = DenseRecord(len(builder), dim, fingerprint, probe, last, file)
    return replace(manifest, dense=dense, next_number=manifest.next_number + 1)


def without_keys(folder: Path, manifest: Manifest, positions: Iterable[range]) -> Manifest:
    """Writes the index without the keys of these positions, if there is one. Raises OSError."""
    record = manifest.dense
    if record is None:
        return manifest
    builder = _opened(folder, record)
    builder.remove(position for span in positions for position in span)
    if len(builder) == 0:
        return replace(manifest, dense=None)
    file = _written(folder, builder, manifest.next_number)
    dense = replace(record, num_keys=len(builder), file=file)
    return replace(manifest, dense=dense, next_number=manifest.next_number + 1)


def _opened(folder: Path, record: DenseRecord) -> DenseBuilder:
    check_file(folder, record.file, contents=True)
    builder = DenseBuilder(record.dim)
    builder.load(folder / record.file.name)
    return builder


def _written(folder: Path, builder: DenseBuilder, number: int, *, expected: int = 0) -> FileRecord:
    path = stem_of(folder, number).with_suffix(builder.suffix)
    return write_atomically(path, lambda file: builder.write(file, expected=expected))
