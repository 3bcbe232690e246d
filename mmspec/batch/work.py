"""Files, folders and globs -> tasks: what is asked about each document, or prompts of a file."""

from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmspec.batch.posted import LINE, Posted
from mmspec.errors import InputError, MmspecError
from mmspec.inputs import Passage, pdf_pages
from mmspec.inputs.documents import SUFFIXES, find_documents, read_documents
from mmspec.inputs.pdf import num_pages
from mmspec.inputs.prompt_file import options_of, prompt_of
from mmspec.inputs.records import (
    Record,
    count_records,
    is_of_records,
    may_hold_prompts,
    not_utf8,
    read_lines,
    read_records,
)
from mmspec.inputs.videos import VIDEO_SUFFIXES
from mmspec.requests import Request, build_request

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_AUDIO = (".wav", ".flac", ".ogg", ".mp3")
MEDIA = {  # suffix -> the field of Request that takes such a file
    **dict.fromkeys(_IMAGES, "images"),
    **dict.fromkeys(_AUDIO, "audio"),
    **dict.fromkeys(VIDEO_SUFFIXES, "videos"),
}
# The document, a blank line, the question: nothing of mmspec's own between them.
_TEMPLATE = "{% for passage in passages %}{{ passage.text }}\n\n{% endfor %}{{ question }}"


@dataclass(frozen=True)
class Task:
    """One thing to be answered."""

    id: str  # the file's path; of a record its "id", or the path and its number, as of a PDF's page
    request: Request | None  # without seed and sampling; None where it cannot be read, or need not
    error: MmspecError | None = None  # why it is not answered, with its place: a file's line, page
    options: Mapping[str, object] = field(default_factory=dict)  # its own, which win
    where: str = ""  # its line or row, where its id may not say it
    posted: Posted | None = None  # in place of a request: a line of OpenAI's batch files


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` mean, those of folders in sorted order. Raises InputError."""
    return find_documents(inputs, suffixes=(*SUFFIXES, *MEDIA))


def read_tasks(
    files: Sequence[Path],
    *,
    prompt: str | None,
    field: str = "text",
    pages: bool = False,
    answered: Container[str] = (),
) -> Iterator[Task]:
    """The tasks of all files, in order, one in memory at a time.

    With a `prompt` it is asked about each document: a text, Markdown, HTML or PDF file, a record of
    JSONL, CSV or Parquet (its `field`), an image, a recording or a video; with `pages` about each
    page of a PDF as it looks, and its text layer is drafted from. Without, the files are records of
    prompts, as `read_prompts` takes them, each perhaps with options of its own, lines of OpenAI's
    batch files, or text with a prompt a line. What cannot be read is a Task with its error; pages
    that are `answered` are not rendered again.
    """
    for path in files:
        medium = MEDIA.get(path.suffix.lower())
        if prompt is None and _needs_prompt(path):
            yield Task(str(path), None, no_prompt(path))
        elif prompt is None:
            yield from _prompts(path)
        elif medium:
            yield Task(str(path), build_request(prompt, {medium: (str(path),)}))
        elif pages and _is_pdf(path):
            yield from _pages(path, prompt, answered)
        else:
            yield from _documents(path, prompt, field)


def no_prompt(path: Path) -> InputError:
    """Of a file that is asked about, without a word of what."""
    return InputError(f"{path}: holds no prompt; say what is asked about it: --prompt")


def count_tasks(files: Sequence[Path], *, prompt: str | None, pages: bool = False) -> int:
    """How many tasks the files hold, a file that cannot be read being one."""
    return sum(_count(path, prompt, pages) for path in files)


def _count(path: Path, prompt: str | None, pages: bool) -> int:
    try:
        if is_of_records(path) or (prompt is None and may_hold_prompts(path)):
            return count_records(path)
        if pages and prompt is not None and _is_pdf(path):
            return num_pages(path)
        if prompt is not None or _needs_prompt(path):
            return 1
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except (OSError, MmspecError):
        return 1


def _needs_prompt(path: Path) -> bool:
    return path.suffix.lower() in MEDIA or _is_pdf(path)


def _is_pdf(path: Path) -> bool:
    return path.suffix.lower() == ".pdf"


def _documents(path: Path, prompt: str, field: str) -> Iterator[Task]:
    for document in read_documents(path, field=field):
        error = document.error
        if error is None and not document.text.strip():
            hint = "; of a scanned PDF ask by --pages" if _is_pdf(path) else ""
            error = InputError(f"{document.id}: holds no text{hint}")
        if error is not None:
            yield Task(document.id, None, error, where=document.where)
            continue
        passage = Passage(document.text, document.id, document.source)
        request = Request(prompt, passages=(passage,), passage_template=_TEMPLATE)
        yield Task(document.id, request, where=document.where)


def _pages(path: Path, prompt: str, answered: Container[str]) -> Iterator[Task]:
    left = deque[int]()
    try:
        for number in range(1, num_pages(path) + 1):
            if _page_id(path, number) in answered:
                yield Task(_page_id(path, number), None)
            else:
                left.append(number)
    except InputError as error:
        yield Task(str(path), None, error)
    while left:
        try:
            for page in pdf_pages(path, tuple(left)):
                request = Request(prompt, images=(page.image,), passages=(page.passage,))
                yield Task(_page_id(path, left.popleft()), request)
        except InputError as error:  # of one page: the others go on
            yield Task(_page_id(path, left.popleft()), None, error)


def _page_id(path: Path, number: int) -> str:
    return f"{path}#{number}"


def _prompts(path: Path) -> Iterator[Task]:
    try:
        if may_hold_prompts(path):
            yield from map(_prompt, read_records(path))
            return
        for number, line in read_lines(path):
            error = not_utf8(Record(path, number), line)
            request = None if error else Request(line.rstrip("\n"))
            yield Task(f"{path}#{number}", request, error)
    except InputError as error:
        yield Task(str(path), None, error)


def _prompt(record: Record) -> Task:
    if record.values.keys() >= LINE:
        return _posted(record)
    try:
        found, options = prompt_of(record), options_of(record)
    except InputError as error:
        return Task(record.id, None, error, where=record.where)
    request = Request(found.prompt, images=found.images, videos=found.videos, audio=found.audio)
    wrong = None
    try:
        if options:
            build_request(request, options)
    except InputError as error:
        wrong = InputError(f"{record.where}: {error}")
    return Task(record.id, request, wrong, options, record.where)


def _posted(record: Record) -> Task:
    name, *said = (record.values.get(key) for key in ("custom_id", "method", "url", "body"))
    if record.path.suffix.lower() == ".parquet":  # where a row has the keys of all others
        said = [_without_nulls(one) for one in said]
    if not (isinstance(name, str) and name):
        error = InputError(f"{record.where}: custom_id={name!r:.80}: expected a text")
        return Task(record.id, None, error, posted=Posted(*said))
    return Task(name, None, where=record.where, posted=Posted(*said))


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
