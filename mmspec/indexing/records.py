"""RecordPrompts: JSONL records with a prompt of their own, whose text is the answer to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmspec.errors import InputError
from mmspec.inputs import InputProcessor
from mmspec.inputs.prompt_file import PROMPT_FIELDS, prompt_of
from mmspec.inputs.records import JSONL, decoded, parse_line
from mmspec.retrieval.corpus import DocumentName
from mmspec.state import Prompt


class _Line(NamedTuple):
    number: int  # from 1
    offset: int  # bytes before it


class RecordPrompts:
    """The prompts of documents that came from JSONL lines with `prompt`, `messages` or `turns`, and
    their images, videos and audio (paths, from the file's folder on), as `read_prompts` reads them.

    Of a file only its lines' places are kept; a prompt is read when it is asked for.
    """

    def __init__(self, inputs: InputProcessor) -> None:
        self._inputs = inputs
        self._files: dict[str, dict[str, _Line]] = {}  # by document id; those with a prompt

    def has_prompt(self, name: DocumentName) -> bool:
        """Raises InputError where the document's file is gone."""
        return name.id in self._lines(name.source)

    def prompt_of(self, name: DocumentName) -> Prompt:
        """Raises InputError for a prompt that cannot be read, and KeyError where there is none."""
        number, offset = self._lines(name.source)[name.id]
        with Path(name.source).open("rb") as file:
            file.seek(offset)
            line = decoded(file.readline())
        found = prompt_of(parse_line(Path(name.source), number, line))
        return self._inputs.encode(
            found.prompt, images=found.images, videos=found.videos, audio=found.audio
        )

    def _lines(self, source: str) -> dict[str, _Line]:
        if Path(source).suffix.lower() not in JSONL:
            return {}
        if source not in self._files:
            try:
                self._files[source] = dict(_prompted_lines(source))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{source}: cannot be read again for its prompts: {error}; was it changed "
                    "since its documents were indexed? Index it again, under another name"
                ) from error
        return self._files[source]


def _prompted_lines(source: str) -> Iterator[tuple[str, _Line]]:
    with Path(source).open("rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            record = parse_line(Path(source), number, decoded(line))
            if any(record.values.get(field) for field in PROMPT_FIELDS):
                yield record.id, _Line(number, offset)
            offset += len(line)
