"""A user's own file of prompts: records (JSONL, CSV, Parquet), or plain text, a prompt a line."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmspec.errors import InputError
from mmspec.inputs.audio import AudioSource
from mmspec.inputs.images import ImageSource
from mmspec.inputs.messages import Message
from mmspec.inputs.records import (
    Record,
    is_table,
    may_hold_prompts,
    not_utf8,
    read_lines,
    read_records,
)
from mmspec.inputs.videos import VideoSource
from mmspec.params import NAMES_ELSEWHERE, by_our_names

PROMPT_FIELDS = ("prompt", "messages", "turns")
_COUNTS = ("max_new_tokens", "top_k", "seed")
_NUMBERS = (*_COUNTS, "temperature", "top_p", "min_p", "repetition_penalty")
_OPTIONS = ("system", "stop", *_NUMBERS)  # those of `mmspec generate`, by their names there
_PATH_KEYS = ("path", "image", "video", "audio")  # of a part of a message
_LONGEST_PATH = 1024  # characters; what is longer is data


@dataclass(frozen=True)
class FilePrompt:
    """One record of a prompt file."""

    prompt: str | Sequence[Message]
    images: tuple[ImageSource, ...] = ()  # paths, those relative to the file's folder resolved
    task: str = "prompts"
    audio: tuple[AudioSource, ...] = ()  # as images; samples with their rate are taken, too
    videos: tuple[VideoSource, ...] = ()  # as images


def read_prompts(path: str | Path) -> list[FilePrompt]:
    """The prompts of a file, in order; empty lines are left out.

    A record of JSONL, a JSON array, CSV or Parquet has `prompt` (a text, or chat messages),
    `messages` or `turns` (texts, of which the first is taken); it may have `image` or `images`,
    `video` or `videos`, and `audio` (paths; in Parquet also the bytes, or samples with their rate),
    and `task` or `category`, a name under which prompts are gathered. Paths, in messages too, are
    looked for from the file's folder on. Other keys are not read. Any other file is plain text.
    Raises InputError that names the line.
    """
    path = Path(path)
    if may_hold_prompts(path):
        found = [prompt_of(record) for record in read_records(path)]
    else:
        found = [_line_prompt(path, number, line) for number, line in read_lines(path)]
    if not found:
        raise InputError(f"{path}: holds no prompt; expected one a line")
    return found


def _line_prompt(path: Path, number: int, line: str) -> FilePrompt:
    if (error := not_utf8(Record(path, number), line)) is not None:
        raise error
    return FilePrompt(line.rstrip("\n"))


def prompt_of(record: Record) -> FilePrompt:
    """The prompt of one record. Raises InputError that names it."""
    if record.error is not None:
        raise record.error
    values = record.values
    turns = values.get("turns")
    first = turns[0] if isinstance(turns, list | tuple) and turns else None
    prompt = values.get("prompt") or values.get("messages") or first
    if isinstance(prompt, str) and not values.get("prompt") and prompt.startswith("[{"):
        raise InputError(
            f"{record.where}: got chat messages as a text; expected a list of them, as JSONL and "
            "Parquet hold it"
        )
    is_messages = isinstance(prompt, list) and all(isinstance(m, Mapping) for m in prompt)
    if not prompt or not (isinstance(prompt, str) or is_messages):
        given = [f"{key}={values[key]!r:.60}" for key in PROMPT_FIELDS if key in values]
        got = ", ".join(given) or f"the keys {sorted(values)}"
        raise InputError(
            f"{record.where}: got {got}; expected a text or chat messages as 'prompt', 'messages' "
            "or 'turns'"
        )
    task = values.get("task") or values.get("category") or "prompts"
    if is_messages:
        prompt = [_message(record, message) for message in cast(list[Message], prompt)]
    return FilePrompt(
        cast(str | Sequence[Message], prompt),
        tuple(_media(record, "images", values.get("images") or values.get("image"))),
        str(task),
        tuple(_media(record, "audio", values.get("audio"))),
        tuple(_media(record, "videos", values.get("videos") or values.get("video"))),
    )


def options_of(record: Record) -> dict[str, object]:
    """What a record says itself of how it is answered: fields of a request. What is null, or an
    empty cell of a CSV file, is not said. Raises InputError for one under two names."""
    names = {name: NAMES_ELSEWHERE.get(name, name) for name in record.values}
    found = {name: record.values[name] for name, ours in names.items() if ours in _OPTIONS}
    if is_table(record.path):
        cells = {name: str(value) for name, value in found.items()}
        found = {
            name: _number(cell) if names[name] in _NUMBERS else cell for name, cell in cells.items()
        }
        found = {name: value for name, value in found.items() if value != ""}
    try:
        said = by_our_names(found)
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from error
    for name in _COUNTS:
        value = said.get(name)
        if isinstance(value, float) and value.is_integer():
            said[name] = int(value)  # a column of them that has gaps is one of floats
    return {name: said[name] for name in _OPTIONS if name in said}


def _number(cell: str) -> str | int | float:
    """What the cell says, or itself where that is none."""
    for read in (int, float):
        with suppress(ValueError):
            return read(cell)
    return cell.strip()


def _media(record: Record, key: str, given: object) -> Iterator[Any]:
    for one in given if isinstance(given, list | tuple) else [given] if given else ():
        if isinstance(one, Mapping):  # as datasets write pictures and recordings
            samples = one.get("array")
            if key == "audio" and samples is not None:
                yield {**one, "array": _samples(record, samples)}
                continue
            one = one.get("bytes") or one.get("path")
        if not isinstance(one, str | bytes):
            raise InputError(f"{record.where}: {key}: expected paths, got {one!r}"[:300])
        yield one if isinstance(one, bytes) else _place(record, one)


def _samples(record: Record, given: object) -> np.ndarray:
    try:
        samples = np.asarray(given, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{record.where}: audio: its array is none of numbers ({error}); expected samples in "
            "[-1, 1]"
        ) from error
    is_loud = samples.size > 0 and np.abs(samples).max() > 1
    if is_loud and not np.mod(samples, 1).any():  # of which type they were is not known any more
        raise InputError(
            f"{record.where}: audio: its array has whole numbers up to {np.abs(samples).max():g}; "
            "expected samples in [-1, 1]: divide those of 16 bits by 32768"
        )
    return samples


def _place(record: Record, path: str) -> str:
    is_path = not path.startswith(("data:", "http:", "https:", "file:"))
    return str(record.path.parent / path) if is_path else path


def _message(record: Record, message: Message) -> Message:
    """With the paths of its media from the file's folder on, where they lie there."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(record, part) for part in content]}


def _part(record: Record, part: object) -> object:
    if not isinstance(part, Mapping):
        return part
    found = dict(part)
    for key in _PATH_KEYS:
        path = part.get(key)
        if isinstance(path, str) and len(path) < _LONGEST_PATH and "\0" not in path:
            place = _place(record, path)
            found[key] = place if os.path.isfile(place) else path  # which takes any name
    return found
