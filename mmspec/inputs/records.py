"""Records: the rows of JSONL and Parquet files, one in memory at a time."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmspec.errors import InputError, MissingExtraError

JSONL = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
SUFFIXES_OF_RECORDS = (*JSONL, _PARQUET)
_BYTES_KEPT = "surrogateescape"  # what is no UTF-8 is read as code points that no text has
_UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # its byte order marks, read so
_TOGETHER = 64  # rows of a Parquet file that are read together: they may hold images


@dataclass(frozen=True)
class Record:
    """A row: an object of JSON, or the columns of a Parquet row."""

    path: Path
    number: int  # of the line or row, from 1
    values: Mapping[str, object] = field(default_factory=dict)
    error: InputError | None = None  # why it has no values

    @property
    def where(self) -> str:
        return f"{self.path}, {'row' if _is_parquet(self.path) else 'line'} {self.number}"

    @property
    def id(self) -> str:
        """Its own `id`, or the file's path and its number."""
        own = self.values.get("id")
        return (
            str(own) if isinstance(own, str | int) and own != "" else f"{self.path}#{self.number}"
        )


def is_of_records(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES_OF_RECORDS


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file in order; empty lines are left out. A line that is no JSON object is a
    record with its error.

    Raises InputError: the file cannot be read; and MissingExtraError where pyarrow is not there.
    """
    return _rows(path) if _is_parquet(path) else _lines(path)


def count_records(path: Path) -> int:
    """How many there are, broken ones among them. Raises as `read_records` does."""
    if _is_parquet(path):
        with _opened(path) as file:
            return int(file.metadata.num_rows)
    try:
        with path.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise unreadable(path, error) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1; empty ones are left out. One that is no
    UTF-8 costs no other: `not_utf8` finds it.

    Raises InputError: the file cannot be read, or is UTF-16.
    """
    try:
        with path.open(encoding="utf-8-sig", errors=_BYTES_KEPT) as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(_UTF_16):
                    raise InputError(f"{path}: is UTF-16; convert it to UTF-8 first")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise unreadable(path, error) from error


def decoded(line: bytes) -> str:
    """A line's bytes, as `read_lines` gives it."""
    return line.decode("utf-8-sig", errors=_BYTES_KEPT)


def not_utf8(path: Path, number: int, line: str) -> InputError | None:
    """Why a line that `read_lines` gave is no text, if so."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = line[error.start].encode(errors=_BYTES_KEPT)
        return InputError(
            f"{Record(path, number).where}: is not UTF-8 text: got the byte {byte!r} at character "
            f"{error.start + 1}; convert the file to UTF-8 first"
        )
    return None


def parse_line(path: Path, number: int, line: str) -> Record:
    """One line of JSONL, as `read_lines` gives it."""
    if (error := not_utf8(path, number, line)) is not None:
        return Record(path, number, error=error)
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # too deep, or a number of thousands of digits
        why = f"is not JSON: {error}; expected one object a line"
    else:
        if isinstance(values, Mapping):
            return Record(path, number, values)
        why = f"got {type(values).__name__}, expected an object"
    broken = Record(path, number)
    return Record(path, number, error=InputError(f"{broken.where}: {why}"))


def unreadable(path: Path, error: OSError | UnicodeDecodeError) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{path}: is not UTF-8 text: {error.reason}; convert it to UTF-8 first")
    return InputError(f"{path}: cannot be read: {error.strerror}; expected a file")


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == _PARQUET


def _lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        yield parse_line(path, number, line)


def _rows(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        rows = (row for some in file.iter_batches(_TOGETHER) for row in some.to_pylist())
        number = 0
        try:
            for number, row in enumerate(rows, start=1):
                yield Record(path, number, row)
        # Of pyarrow, whose own are these three; and values that Python has no type for.
        except (OSError, ValueError, NotImplementedError, OverflowError) as error:
            raise InputError(
                f"{path}: cannot be read behind row {number}: {error}; expected a whole Parquet "
                "file, of texts, numbers, lists and pictures"
            ) from error


def _opened(path: Path) -> Any:
    """A pyarrow ParquetFile, to be used in a `with`."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Parquet needs pyarrow: install mmspec[parquet]"
        ) from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ArrowException) as error:
        raise InputError(
            f"{path}: cannot be read as Parquet: {error}; expected a whole Parquet file"
        ) from error
