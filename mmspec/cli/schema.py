"""Answers by a JSON schema, as a command is told of it: a file."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmspec.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from transformers import LogitsProcessor

    from mmspec import Engine


def read_schema(path: Path) -> dict[str, Any]:
    """Before a model is loaded. Raises InputError, MissingExtraError."""
    if not find_spec("llguidance"):
        raise MissingExtraError("--schema needs llguidance: pip install 'mmspec[guided]'")
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--schema {path}: cannot be read: {why}; expected a JSON file") from error
    if not isinstance(schema, dict):
        kind = type(schema).__name__
        raise InputError(f"--schema {path}: got {kind}, expected a JSON schema's object")
    return schema


def following(engine: "Engine", schema: Mapping[str, Any] | None) -> "list[LogitsProcessor]":
    """For all of a command's requests; nothing without a schema. Raises InputError."""
    from mmspec.integrations.guided import JsonGuide

    return [] if schema is None else [JsonGuide(engine).matching(schema)]
