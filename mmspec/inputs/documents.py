"""Documents: text, Markdown, HTML, PDF, JSONL, CSV and Parquet files -> their text by pages."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmspec.errors import InputError, MissingExtraError
from mmspec.inputs.pdf import opened_pdf, page_text
from mmspec.inputs.records import (
    SUFFIXES_OF_RECORDS,
    Record,
    is_of_records,
    kind_of,
    read_records,
    unreadable,
)

_TEXT = (".txt", ".text", ".md", ".markdown", ".rst")
_HTML = (".html", ".htm", ".xhtml")
SUFFIXES = (*_TEXT, *_HTML, *SUFFIXES_OF_RECORDS, ".pdf")  # that are taken from a folder
_EXTRA = "install mmspec[docs]"


@dataclass(frozen=True)
class Page:
    """One page's text layer; a file without pages is one page."""

    number: int  # from 1
    text: str


@dataclass(frozen=True)
class TextDocument:
    """A document as text, or why it cannot be read."""

    id: str  # the file's path; of a record its "id", or the path and its number
    source: str  # the file's path
    pages: tuple[Page, ...] = ()
    error: InputError | None = None
    where: str = ""  # of a record: its line or row

    @property
    def text(self) -> str:
        """Raises its error."""
        if self.error is not None:
            raise self.error
        return "\n".join(page.text for page in self.pages)


def find_documents(inputs: Sequence[str], *, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files that `inputs` mean, each once: files as they are, globs ("notes/**/*.md"), and
    folders with all files of these kinds below them, but hidden ones (.git, ._notes.md); each
    folder and glob in sorted order.

    Raises InputError where one means nothing.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            below = sorted(path for path in Path(given).rglob("*") if path.is_file())
            shown = [path for path in below if not _is_hidden(path.relative_to(given))]
            files = [path for path in shown if kind_of(path) in suffixes]
        elif os.path.isfile(given):
            files = [Path(given)]
        else:
            below = sorted(map(Path, glob.glob(given, recursive=True)))
            files = [path for path in below if path.is_file()]
        if not files:
            raise InputError(
                f"{given!r}: no such file, folder or glob, or a folder without documents; expected "
                f"files of {', '.join(suffixes)}"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_documents(path: Path, *, field: str = "text") -> Iterator[TextDocument]:
    """The documents of one file: one, or of JSONL, CSV and Parquet one a record, whose text is in
    `field`. A file of another kind is read as plain text.

    What cannot be read is a document with its error: no such file, not UTF-8, not JSON, no such
    field, a broken PDF. Raises MissingExtraError where HTML, PDF or Parquet needs a package that is
    not there.
    """
    suffix = path.suffix.lower()
    read: Callable[[Path], tuple[Page, ...]] = _read_text
    if suffix in _HTML:
        read = _read_html
    elif suffix == ".pdf":
        read = _read_pdf
    try:
        if is_of_records(path):
            for record in read_records(path):
                yield _record_document(record, field)
        else:
            yield TextDocument(str(path), str(path), read(path))
    except InputError as error:
        yield TextDocument(str(path), str(path), error=error)


def _record_document(record: Record, field: str) -> TextDocument:
    text, error = record.values.get(field), record.error
    if error is None and not isinstance(text, str):
        names = ", ".join(record.values) or "nothing"
        got = f"{text!r:.40}" if field in record.values else names
        error = InputError(
            f"{record.where}: no text in the field {field!r}: got {got}; name the field that holds "
            "it: --field"
        )
    pages = (Page(1, text),) if isinstance(text, str) else ()
    return TextDocument(record.id, str(record.path), pages, error, record.where)


def _read_text(path: Path) -> tuple[Page, ...]:
    try:
        return (Page(1, _bytes(path).decode("utf-8-sig")),)
    except UnicodeDecodeError as error:
        raise unreadable(path, error) from error


def _read_html(path: Path) -> tuple[Page, ...]:
    try:
        import html_text
        import lxml.html
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading HTML needs html-text: {_EXTRA}") from error
    data = _bytes(path)
    try:
        tree = lxml.html.document_fromstring(data) if data.strip() else None
    except (ValueError, lxml.etree.LxmlError) as error:
        raise InputError(f"{path}: cannot be read as HTML: {error}") from error
    return (Page(1, html_text.extract_text(tree) if tree is not None else ""),)


def _read_pdf(path: Path) -> tuple[Page, ...]:
    with opened_pdf(path) as document:
        return tuple(Page(number, page_text(page)) for number, page in enumerate(document, start=1))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
