"""The folder that a writer writes to: whose files are in it, and whose turn it is."""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock, Timeout

from mmspec.errors import DatastoreError
from mmspec.retrieval.journal import JOURNAL
from mmspec.retrieval.manifest import MANIFEST

_OURS = r"\d{6}\.(tokens|documents|names|suffixes|faiss|vectors)(\.partial)?"


def make_folder(folder: Path) -> None:
    """Makes it, or raises DatastoreError where it holds anything that is not a datastore's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DatastoreError(f"{folder}: a datastore is a folder, this is a file") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    known = re.compile(rf"LOCK|{_OURS}|({MANIFEST}|{JOURNAL})(\.partial)?")
    strange = sorted(entry.name for entry in folder.iterdir() if not known.fullmatch(entry.name))
    if strange:
        raise DatastoreError(
            f"{folder}: holds other files ({', '.join(strange[:3])}); expected an empty folder, a "
            "new one or a datastore"
        )


def locked(folder: Path) -> FileLock:
    """The folder's lock, held: the system frees it when its holder dies, however that comes about.
    Raises DatastoreError where another writer has it."""
    lock = FileLock(folder / "LOCK")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DatastoreError(
            f"{folder}: another writer is at work on this datastore; wait until it is done "
            "(reading goes on meanwhile)"
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    return lock


def sweep(folder: Path, kept: Collection[str]) -> None:
    """Deletes files of ours, but those whose names are `kept`."""
    for entry in folder.iterdir():
        is_partial = entry.name in (f"{MANIFEST}.partial", f"{JOURNAL}.partial")
        if is_partial or (re.fullmatch(_OURS, entry.name) and entry.name not in kept):
            with contextlib.suppress(PermissionError):  # Windows: a reader has it open
                entry.unlink()


def unwritable(folder: Path, error: OSError) -> DatastoreError:
    return DatastoreError(
        f"{folder}: cannot be written: {error.strerror}; name a folder that you may write to"
    )
