"""Records: the rows of JSONL, CSV and Parquet files, one in memory at a time, and JSON arrays."""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mmspec.errors import InputError, MissingExtraError
from mmspec.words import counted

JSONL = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_PARQUET = ".parquet"
_JSON = ".json"  # an array, or JSONL by another name
SUFFIXES_OF_RECORDS = (*JSONL, *_TABLES, _PARQUET)
_BYTES_KEPT = "surrogateescape"  # what is no UTF-8 is read as code points that no text has
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_JUDGED = 1024  # bytes
_LONGEST_FIELD = 2**31 - 1  # characters
_QUOTES = 'expected a text with " in it in quotes, and each of its own written twice'
_TOGETHER = 64  # rows of a Parquet file that are read together: they may hold images


@dataclass(frozen=True)
class Record:
    """A row: an object of JSON, or the columns of a CSV or Parquet row."""

    path: Path
    number: int  # of the line or row, from 1
    values: Mapping[str, object] = field(default_factory=dict)
    error: InputError | None = None  # why it has no values
    unit: Literal["line", "row"] = "line"  # that is numbered

    @property
    def where(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"

    @property
    def id(self) -> str:
        """Its own `id`, or the file's path and its number."""
        own = self.values.get("id")
        return (
            str(own) if isinstance(own, str | int) and own != "" else f"{self.path}#{self.number}"
        )


def kind_of(path: Path) -> str:
    """Its suffix; of lines or a table that gzip has packed, theirs."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in (*JSONL, *_TABLES) else suffix


def is_of_records(path: Path) -> bool:
    return kind_of(path) in SUFFIXES_OF_RECORDS


def is_table(path: Path) -> bool:
    """Whether its values are cells, which are texts."""
    return kind_of(path) in _TABLES


def may_hold_prompts(path: Path) -> bool:
    """Whether its prompts are records: those of a .json file too, which else is one document."""
    return is_of_records(path) or kind_of(path) == _JSON


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file in order; empty lines are left out. A line that is no JSON object is a
    record with its error. A .json file may be one array of objects.

    Raises InputError: the file cannot be read; and MissingExtraError where pyarrow is not there.
    """
    if kind_of(path) == _PARQUET:
        return _rows(path)
    if kind_of(path) == _JSON:
        return _array_or_lines(path)
    return _table(path) if is_table(path) else _lines(path)


def count_records(path: Path) -> int:
    """How many there are, broken ones among them. Raises as `read_records` does."""
    if kind_of(path) == _PARQUET:
        with _opened(path) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in (read_lines(path) if kind_of(path) in JSONL else read_records(path)))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1; empty ones are left out. One that is no
    UTF-8 costs no other: `not_utf8` finds it.

    Raises InputError: the file cannot be read, is UTF-16 or no text at all.
    """
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


@contextmanager
def _text(path: Path, newline: str | None = None) -> Iterator[TextIOWrapper]:
    is_packed = path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            beginning = file.peek(_JUDGED)[:_JUDGED]
            if beginning.startswith(_UTF_16):
                raise InputError(f"{path}: is UTF-16; convert it to UTF-8 first")
            if b"\0" in beginning:
                raise InputError(f"{path}: is no text: it holds NUL bytes; expected UTF-8")
            yield TextIOWrapper(file, "utf-8-sig", _BYTES_KEPT, newline)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def decoded(line: bytes) -> str:
    """A line's bytes, as `read_lines` gives it."""
    return line.decode("utf-8-sig", errors=_BYTES_KEPT)


def not_utf8(record: Record, line: str) -> InputError | None:
    """Why a record's line, as `read_lines` gave it, is no text, if so."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = line[error.start].encode(errors=_BYTES_KEPT)
        return InputError(
            f"{record.where}: is not UTF-8 text: got the byte {byte!r} at character "
            f"{error.start + 1}; convert the file to UTF-8 first"
        )
    return None


def parse_line(path: Path, number: int, line: str) -> Record:
    """One line of JSONL, as `read_lines` gives it."""
    record = Record(path, number)
    if (error := not_utf8(record, line)) is not None:
        return replace(record, error=error)
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # too deep, or a number of thousands of digits
        told = str(error)
        if isinstance(error, json.JSONDecodeError):  # whose own line is that of the text: 1 or 2
            told = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        why = f"{record.where}: is not JSON: {told}; expected one object a line"
        return replace(record, error=InputError(why))
    return with_values(record, values)


def with_values(record: Record, values: object) -> Record:
    """The record, with what JSON says at its place: an object, or that it is none."""
    if isinstance(values, Mapping):
        return replace(record, values=values)
    why = f"{record.where}: got {type(values).__name__}, expected an object"
    return replace(record, error=InputError(why))


def unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{path}: is not UTF-8 text: {error.reason}; convert it to UTF-8 first")
    why = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be read: {why}; expected a file")


def _lines(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        yield parse_line(path, number, line)


def _array_or_lines(path: Path) -> Iterator[Record]:
    """The objects of one array, as ShareGPT and LLaVA publish theirs, or one a line."""
    lines = read_lines(path)
    first = next(lines, None)
    if first is None or not first[1].lstrip().startswith("["):
        yield from _lines(path)
        return
    whole = list[str]()
    for number, line in chain([first], lines):
        if (error := not_utf8(Record(path, number), line)) is not None:
            raise error
        whole.append(line)
    try:
        found = json.loads("".join(whole))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is not JSON: {error}; expected an array of objects, or one object a line"
        ) from error
    for number, values in enumerate(found, start=1):
        yield with_values(Record(path, number, unit="row"), values)


def _table(path: Path) -> Iterator[Record]:
    """The rows of a CSV file by the names in its first one. They are told apart by what stands
    there most often of comma, semicolon and tab; in a .tsv file by tabs."""
    csv.field_size_limit(_LONGEST_FIELD)  # Python's own is 131,072: documents are longer
    with _text(path, newline="") as file:
        first = next((line for line in file if line.strip()), "")
        unquoted = "".join(first.split('"')[::2])
        delimiter = "\t" if kind_of(path) == ".tsv" else max(",;\t", key=unquoted.count)
        rows = _cells(csv.reader(chain([first], file), delimiter=delimiter, strict=True))
        names = next(rows, [])
        if isinstance(names, csv.Error):
            raise InputError(f"{path}: its first row, of names, is no CSV: {names}; {_QUOTES}")
        for number, row in enumerate(rows, start=1):
            yield _table_record(path, number, names, row)


def _cells(rows: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """The rows that are not empty; a broken one costs no other."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
        else:
            if any(cell.strip() for cell in row):
                yield row


def _table_record(path: Path, number: int, names: list[str], row: list[str] | csv.Error) -> Record:
    record = Record(path, number, unit="row")
    if isinstance(row, csv.Error):
        error: InputError | None = InputError(f"{record.where}: is no CSV: {row}; {_QUOTES}")
    elif len(row) != len(names):
        got = counted(len(row), "column")
        error = InputError(f"{record.where}: got {got}, expected {len(names)}, as there are names")
    else:
        error = not_utf8(record, "\t".join(row))
    if error is not None or isinstance(row, csv.Error):
        return replace(record, error=error)
    return replace(record, values=dict(zip(names, row, strict=True)))


def _rows(path: Path) -> Iterator[Record]:
    with _opened(path) as file:
        rows = (row for some in file.iter_batches(_TOGETHER) for row in some.to_pylist())
        if "decimal" in str(file.schema_arrow):  # else long rows, of sounds, are not gone through
            rows = (_plain(row) for row in rows)
        number = 0
        try:
            for number, row in enumerate(rows, start=1):
                yield Record(path, number, row, unit="row")
        # Of pyarrow, whose own are these three; and values that Python has no type for.
        except (OSError, ValueError, NotImplementedError, OverflowError) as error:
            raise InputError(
                f"{path}: cannot be read behind row {number}: {error}; expected a whole Parquet "
                "file, of texts, numbers, lists and pictures"
            ) from error


def _plain(value: Any) -> Any:
    """With numbers in place of decimals."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


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
