"""A user's own file of prompts: records (JSONL, Parquet), or plain text with a prompt a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmspec.errors import InputError
from mmspec.inputs.images import ImageSource
from mmspec.inputs.messages import Message
from mmspec.inputs.records import Record, is_of_records, read_records, unreadable

PROMPT_FIELDS = ("prompt", "messages", "turns")


@dataclass(frozen=True)
class FilePrompt:
    """One record of a prompt file."""

    prompt: str | Sequence[Message]
    images: tuple[ImageSource, ...] = ()  # paths, those relative to the file's folder resolved
    task: str = "prompts"


def read_prompts(path: str | Path) -> list[FilePrompt]:
    """The prompts of a file, in order; empty lines are left out.

    A record of JSONL or Parquet has `prompt` (a text, or chat messages), `messages`, or `turns`
    (texts, of which the first is taken); it may have `image` or `images` (paths; in Parquet also
    the bytes of the pictures) and `task` or `category`, a name under which prompts are gathered.
    Other keys are not read. Any other file is plain text. Raises InputError that names the line.
    """
    path = Path(path)
    if is_of_records(path) or path.suffix.lower() == ".json":  # JSONL by another name
        found = [prompt_of(record) for record in read_records(path)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from error
        found = [FilePrompt(line) for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path}: holds no prompt; expected one a line")
    return found


def prompt_of(record: Record) -> FilePrompt:
    """The prompt of one record. Raises InputError that names it."""
    if record.error is not None:
        raise record.error
    values = record.values
    turns = values.get("turns")
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    prompt = values.get("prompt") or values.get("messages") or first
    is_messages = isinstance(prompt, list) and all(isinstance(m, Mapping) for m in prompt)
    if not prompt or not (isinstance(prompt, str) or is_messages):
        raise InputError(
            f"{record.where}: got the keys {sorted(values)}; expected a text or chat messages as "
            "'prompt', 'messages' or 'turns'"
        )
    images = values.get("images") or values.get("image") or ()
    given = list(images) if isinstance(images, list | tuple) else [images]
    task = values.get("task") or values.get("category") or "prompts"
    return FilePrompt(
        cast(str | Sequence[Message], prompt),
        tuple(_image(record, image) for image in given),
        str(task),
    )


def _image(record: Record, image: object) -> ImageSource:
    if isinstance(image, Mapping):  # as datasets write pictures
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise InputError(f"{record.where}: images: expected paths, got {image!r}"[:300])
    if image.startswith(("data:", "http:", "https:")):
        return image
    return str(record.path.parent / image)
