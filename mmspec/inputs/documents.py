"""Documents: text, Markdown, HTML, PDF and JSONL files -> their text, page by page."""

import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmspec.errors import InputError, MissingExtraError
from mmspec.inputs.pdf import opened_pdf, page_text

_TEXT = (".txt", ".text", ".md", ".markdown", ".rst")
_HTML = (".html", ".htm", ".xhtml")
SUFFIXES_OF_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_TEXT, *_HTML, *SUFFIXES_OF_LINES, ".pdf")  # that are taken from a folder
_EXTRA = "install mmspec[docs]"


@dataclass(frozen=True)
class Page:
    """One page's text layer; a file without pages is one page."""

    number: int  # from 1
    text: str


@dataclass(frozen=True)
class TextDocument:
    """A document as text."""

    id: str  # the file's path; of a JSONL line its "id", or the path and the line's number
    source: str  # the file's path
    pages: tuple[Page, ...]

    @property
    def text(self) -> str:
        return "\n".join(page.text for page in self.pages)


def find_documents(inputs: Sequence[str], *, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The files that `inputs` mean, each once: files as they are, globs ("notes/**/*.md"), and
    folders with all files of these kinds below them; each folder and glob in sorted order.

    Raises InputError where one means nothing.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            below = sorted(path for path in Path(given).rglob("*") if path.is_file())
            files = [path for path in below if path.suffix.lower() in suffixes]
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


def read_documents(
    path: Path, *, field: str = "text", on_broken: Callable[[InputError], None] | None = None
) -> Iterator[TextDocument]:
    """The documents of one file: one, or of JSONL one a line, whose text is in `field`. A file of
    another kind is read as plain text.

    Raises InputError: cannot be read, not UTF-8, not JSON, no such field, a broken PDF; with
    `on_broken` that is told instead, and the document (of JSONL the line) is left out. Raises
    MissingExtraError where HTML or PDF needs a package that is not there.
    """
    suffix = path.suffix.lower()
    read: Callable[[Path], tuple[Page, ...]] = _read_text
    if suffix in _HTML:
        read = _read_html
    elif suffix == ".pdf":
        read = _read_pdf
    try:
        if suffix in SUFFIXES_OF_LINES:
            yield from _read_lines(path, field, on_broken)
        else:
            yield TextDocument(str(path), str(path), read(path))
    except InputError as error:
        if on_broken is None:
            raise
        on_broken(error)


def _read_text(path: Path) -> tuple[Page, ...]:
    try:
        return (Page(1, _bytes(path).decode("utf-8-sig")),)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _read_lines(
    path: Path, field: str, on_broken: Callable[[InputError], None] | None
) -> Iterator[TextDocument]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    document = _line_document(path, number, line, field)
                except InputError as error:
                    if on_broken is None:
                        raise
                    on_broken(error)
                else:
                    yield document
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def _line_document(path: Path, number: int, line: str, field: str) -> TextDocument:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: is not JSON: {error}") from error
    text = values.get(field) if isinstance(values, dict) else None
    if not isinstance(text, str):
        names = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise InputError(
            f"{path}, line {number}: no text in the field {field!r}: got {names or 'nothing'}; "
            "name the field that holds it: --field"
        )
    return TextDocument(line_id(values, path, number), str(path), (Page(1, text),))


def line_id(values: Mapping[str, object], path: Path | str, number: int) -> str:
    """The id of the document that a line of JSONL holds."""
    own = values.get("id")
    return str(own) if isinstance(own, str | int) and own != "" else f"{path}#{number}"


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
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> InputError:
    return InputError(f"{path}: is not UTF-8 text: {error.reason}; convert it to UTF-8 first")
