"""A prompt and its passages, as a command is told of them: a text, stdin, files."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mmspec
from mmspec.errors import InputError

if TYPE_CHECKING:
    from mmspec import Passage


def read_prompt(prompt: str) -> str:
    """The prompt that the argument means; of stdin and files one last newline is left out.

    Raises InputError: no such file, not UTF-8.
    """
    if prompt != "-" and not prompt.startswith("@"):
        return prompt
    name = "stdin" if prompt == "-" else prompt[1:]
    try:
        data = sys.stdin.buffer.read() if prompt == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InputError(
            f"prompt {prompt!r}: cannot read {name!r}: {error.strerror}; @ reads a file, a text "
            "that begins with @ goes through stdin: -"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"prompt {prompt!r}: {name} is not UTF-8 text: {error.reason}") from error


def read_passages(files: Sequence[str], *, in_prompt: bool) -> list["Passage"]:
    """A passage a document of each file. Raises InputError and MissingExtraError."""
    from mmspec.inputs.documents import find_documents, read_documents

    return [
        mmspec.Passage(document.text, document.id, document.source, in_prompt)
        for path in find_documents(files)
        for document in read_documents(path)
    ]
