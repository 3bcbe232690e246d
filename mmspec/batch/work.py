"""Files, folders and globs -> tasks: what is asked about each document, or prompts of a file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmspec.errors import InputError
from mmspec.inputs import Passage
from mmspec.inputs.documents import (
    SUFFIXES,
    SUFFIXES_OF_LINES,
    find_documents,
    line_id,
    read_documents,
)
from mmspec.inputs.prompt_file import read_prompt_line
from mmspec.requests import Request

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# The document, a blank line, the question: nothing of mmspec's own between them.
_TEMPLATE = "{% for passage in passages %}{{ passage.text }}\n\n{% endfor %}{{ question }}"


@dataclass(frozen=True)
class Task:
    """One thing to be answered."""

    id: str  # the file's path; of a JSONL line its "id", or the path and the line's number
    request: Request | None  # without seed and sampling; None where it cannot be read
    error: InputError | None = None


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` mean, those of folders in sorted order. Raises InputError."""
    return find_documents(inputs, suffixes=(*SUFFIXES, *IMAGE_SUFFIXES))


def read_tasks(files: Sequence[Path], *, prompt: str | None, field: str = "text") -> Iterator[Task]:
    """The tasks of all files, in order, one in memory at a time.

    With a `prompt` it is asked about each document: a text, Markdown, HTML or PDF file, a line of
    JSONL (its `field`), or an image. Without, the files are JSONL of prompts, as `read_prompts`
    takes them, or text with a prompt a line. What cannot be read is a Task with its error.
    """
    for path in files:
        if prompt is None:
            yield from _prompts(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield Task(str(path), Request(prompt, images=(str(path),)))
        else:
            yield from _documents(path, prompt, field)


def count_tasks(files: Sequence[Path], *, prompt: str | None) -> int:
    """How many tasks the files hold, a file that cannot be read being one."""
    has_lines = [prompt is None or path.suffix.lower() in SUFFIXES_OF_LINES for path in files]
    return sum(
        _count_lines(path) if is_it else 1 for path, is_it in zip(files, has_lines, strict=True)
    )


def _documents(path: Path, prompt: str, field: str) -> Iterator[Task]:
    broken: list[InputError] = []
    documents = read_documents(path, field=field, on_broken=broken.append)
    for document in documents:
        yield from _broken(path, broken)
        passage = Passage(document.text, document.id, document.source)
        request = Request(prompt, passages=(passage,), passage_template=_TEMPLATE)
        if document.text.strip():
            yield Task(document.id, request)
        else:
            empty = InputError(f"{document.id}: holds no text; of a scanned PDF give its images")
            yield Task(document.id, None, empty)
    yield from _broken(path, broken)


def _broken(path: Path, errors: list[InputError]) -> Iterator[Task]:
    """The errors so far, which begin with the place that they concern."""
    while errors:
        error = errors.pop(0)
        yield Task(str(error).partition(": ")[0], None, error)


def _prompts(path: Path) -> Iterator[Task]:
    is_jsonl = path.suffix.lower() in (*SUFFIXES_OF_LINES, ".json")
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if is_jsonl:
                    yield _prompt(path, number, line)
                else:
                    yield Task(f"{path}#{number}", Request(line.rstrip("\n")))
    except OSError as error:
        yield Task(str(path), None, InputError(f"{path}: cannot be read: {error.strerror}"))
    except UnicodeDecodeError as error:
        yield Task(str(path), None, InputError(f"{path}: is not UTF-8 text: {error.reason}"))


def _prompt(path: Path, number: int, line: str) -> Task:
    try:
        found = read_prompt_line(path, number, line)
    except InputError as error:
        return Task(f"{path}#{number}", None, error)
    return Task(line_id(json.loads(line), path, number), Request(found.prompt, images=found.images))


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except OSError:
        return 1
