"""Files, folders and globs -> lessons: a prompt with its answer, or without; a text by itself."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from mmspec.batch.work import MEDIA, find_inputs, no_prompt, read_tasks
from mmspec.errors import InputError, MmspecError
from mmspec.inputs.documents import read_documents
from mmspec.inputs.messages import Message
from mmspec.inputs.prompt_file import PROMPT_FIELDS, prompt_of
from mmspec.inputs.records import Record, may_hold_prompts, read_records
from mmspec.requests import Request
from mmspec.state import MediaKind

_ANSWERS = ("answer", "response", "completion", "output")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_KINDS = get_args(MediaKind)


@dataclass(frozen=True)
class Lesson:
    """One thing to learn from: a prompt (`request`), or a `text` without one."""

    id: str
    request: Request | None = None  # what is asked last, without sampling
    answer: str | None = None  # that was given to it; None: the target's own is to be found
    text: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether it needs an answer."""
        return self.request is not None and self.answer is None


def read_lessons(
    inputs: Sequence[str],
    *,
    prompt: str | None = None,
    field: str = "text",
    on_broken: Callable[[MmspecError], None],
) -> Iterator[Lesson]:
    """The lessons of all files, in order, one in memory at a time; those of a JSON array together.

    A record of JSONL, a JSON array or Parquet holds a prompt as `read_prompts` takes it (`prompt`,
    `messages`, `turns`, with images, videos and audio) or `conversations` as ShareGPT and LLaVA
    write them; its answer is the last message, or in `answer`, `response`, `completion` or
    `output`, or is left out. A record without a prompt is a text in `field`, and so is any other
    document. With a `prompt` that is asked about each document or image, as in a batch. `on_broken`
    is told what cannot be read. Raises InputError for a path that means nothing.
    """
    for path in find_inputs(inputs):
        if prompt is not None:
            for task in read_tasks([path], prompt=prompt, field=field):
                if task.request is not None:
                    yield Lesson(task.id, task.request)
                elif task.error is not None:
                    on_broken(task.error)
        elif may_hold_prompts(path):
            for record in _records(path, on_broken):
                try:
                    yield _lesson(record, field)
                except InputError as error:
                    on_broken(error)
        elif path.suffix.lower() in MEDIA:
            on_broken(no_prompt(path))
        else:
            for document in read_documents(path):
                if document.error is None:
                    yield Lesson(document.id, text=document.text)
                else:
                    on_broken(document.error)


def _records(path: Path, on_broken: Callable[[MmspecError], None]) -> Iterator[Record]:
    try:
        yield from read_records(path)
    except MmspecError as error:
        on_broken(error)


def _lesson(record: Record, field: str) -> Lesson:
    if record.error is not None:
        raise record.error
    values = dict(record.values)
    if values.get("conversations"):
        values["messages"] = _messages(values, record.where)
    if not any(values.get(key) for key in PROMPT_FIELDS):
        text = values.get(field)
        if not isinstance(text, str):
            raise InputError(
                f"{record.where}: got the keys {sorted(values)}; expected a prompt ('prompt', "
                f"'messages', 'turns', 'conversations') or a text in {field!r} (--field)"
            )
        return Lesson(record.id, text=text)
    found = prompt_of(replace(record, values=values))
    request = Request(found.prompt, images=found.images, videos=found.videos, audio=found.audio)
    said = (value for key in _ANSWERS if isinstance(value := values.get(key), str) and value)
    return _split(Lesson(record.id, request, next(said, None)))


def _split(lesson: Lesson) -> Lesson:
    """The last message is the answer, where an assistant says it; one that says nothing, as it
    calls tools, is left out."""
    request = lesson.request
    assert request is not None
    if isinstance(request.prompt, str) or lesson.answer is not None:
        return lesson
    messages = cast(Sequence[Message], request.prompt)
    last = messages[-1]
    if last.get("role") != "assistant" or len(messages) < 2:
        return lesson
    request = replace(request, prompt=messages[:-1])
    return replace(lesson, request=request, answer=text_of(last) or None)


def text_of(message: Message) -> str:
    """What a message says, its media left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "".join(text for text in texts if isinstance(text, str))


def _messages(values: Mapping[str, object], where: str) -> list[dict[str, object]]:
    """Chat messages of ShareGPT's turns. LLaVA's marks, as "<image>", become the media that the
    record brings, also a video where that is what it brings; elsewhere they are text, as in XML."""
    marks = {f"<{kind}>": kind for kind in _KINDS if values.get(kind) or values.get(f"{kind}s")}
    if "<video>" in marks:
        marks.setdefault("<image>", "video")
    messages: list[dict[str, object]] = []
    turns = values["conversations"]
    for turn in turns if isinstance(turns, list) else [turns]:
        said = turn.get("value") if isinstance(turn, Mapping) else None
        if not isinstance(said, str) or not isinstance(turn, Mapping):
            raise InputError(
                f'{where}: conversations: got {turn!r:.80}; expected {{"from": ..., "value": ...}}'
            )
        speaker = str(turn.get("from"))
        messages.append({"role": _SPEAKERS.get(speaker, speaker), "content": _content(said, marks)})
    while messages and messages[0]["role"] == "assistant":
        messages.pop(0)  # shared conversations often begin in the middle
    return messages


def _content(said: str, marks: Mapping[str, str]) -> str | list[dict[str, str]]:
    """`marks`: the kinds of media that they stand for."""
    pieces = re.split(f"({'|'.join(marks)})", said) if marks else [said]
    if len(pieces) == 1:
        return said
    parts: list[dict[str, str]] = []
    for piece in pieces:
        if piece in marks:
            parts.append({"type": marks[piece]})
        elif piece.strip("\n"):
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts
