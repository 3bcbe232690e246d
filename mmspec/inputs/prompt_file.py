"""A user's own file of prompts: JSONL with an object a line, or plain text with a prompt a line."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mmspec.errors import InputError
from mmspec.inputs.messages import Message

PROMPT_FIELDS = ("prompt", "messages", "turns")


@dataclass(frozen=True)
class FilePrompt:
    """One line of a prompt file."""

    prompt: str | Sequence[Message]
    images: tuple[str, ...] = ()  # paths, those relative to the file's folder already resolved
    task: str = "prompts"


def read_prompts(path: str | Path) -> list[FilePrompt]:
    """The prompts of a file, in order; empty lines are left out.

    A line of JSONL has `prompt` (a text, or chat messages), `messages`, or `turns` (texts, of which
    the first is taken); it may have `image` or `images` (paths) and `task` or `category`, a name
    under which prompts are gathered. Other keys are not read. Any other file is plain text.
    Raises InputError that names the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected a file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{path}: holds no prompt; expected one a line")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        return [FilePrompt(line) for _, line in numbered]
    return [read_prompt_line(path, number, line) for number, line in numbered]


def read_prompt_line(path: Path, number: int, line: str) -> FilePrompt:
    """The prompt of one line of JSONL. Raises InputError that names the line."""
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON: {error}; expected one object a line") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: got {type(values).__name__}, expected an object")
    turns = values.get("turns")
    prompt = values.get("prompt") or values.get("messages") or (turns and turns[0])
    is_messages = isinstance(prompt, list) and all(isinstance(m, Mapping) for m in prompt)
    if not prompt or not (isinstance(prompt, str) or is_messages):
        raise InputError(
            f"{where}: got the keys {sorted(values)}; expected a text or chat messages as "
            "'prompt', 'messages' or 'turns'"
        )
    images = values.get("images") or values.get("image") or ()
    images = [images] if isinstance(images, str) else images
    if not all(isinstance(image, str) for image in images):
        raise InputError(f"{where}: images: expected paths, got {images!r}"[:300])
    task = values.get("task") or values.get("category") or "prompts"
    return FilePrompt(
        cast(str | Sequence[Message], prompt),
        tuple(_resolved(path, image) for image in images),
        str(task),
    )


def _resolved(path: Path, image: str) -> str:
    if image.startswith(("data:", "http:", "https:")):
        return image
    return str(path.parent / image)
