"""Files of a datastore: written in full or not at all, never changed, known by their checksum."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmspec.errors import DatastoreError

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of a file."""

    name: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:  # nothing outside of the folder is read
            raise ValueError(f"file name {self.name!r}")


def record_of(path: Path) -> FileRecord:
    """The record of a finished file."""
    return FileRecord(path.name, path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(folder: Path, record: FileRecord, *, contents: bool) -> None:
    """Compares a file with its record: its length, and with `contents` its checksum.

    Raises DatastoreError where they differ, FileNotFoundError where it is gone.
    """
    path = folder / record.name
    num_bytes = path.stat().st_size
    if num_bytes != record.num_bytes:
        raise damaged(
            f"{path}: this file is damaged: got {num_bytes} bytes, the manifest says "
            f"{record.num_bytes}"
        )
    if contents and sha256_of(path) != record.sha256:
        raise damaged(f"{path}: this file is damaged: its SHA-256 is not the manifest's")


def damaged(what: str) -> DatastoreError:
    """With what there is to do about it."""
    return DatastoreError(f"{what}; restore the folder from a copy, or build it again")


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], *, mode: int = 0o666
) -> FileRecord:
    """`write` fills a file beside `path`, which then takes its place, on the disk for good. Its
    `mode` is less what the process's umask takes.

    Raises OSError: at `path` is what was there before, or all that is new.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            write(file)
            flush(file)
        record = FileRecord(path.name, partial.stat().st_size, sha256_of(partial))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return record


def flush(file: BinaryIO) -> None:
    """What was written is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """New and replaced names in `folder` outlive a power failure."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """A full disk, or a file larger than this process may write, becomes a DatastoreError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DatastoreError(
            f"{folder}: no room left to write ({error.strerror}); the datastore is as it was "
            "before. Make room, then run the same again: it goes on where it was"
        ) from error
