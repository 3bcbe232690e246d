"""Form: what OpenAI's two ways to ask have in common: a body read, a body or events written."""

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mmspec.errors import InputError
from mmspec.integrations.answer import speculation
from mmspec.requests import FIELD_NAMES, Progress, Request, Result, build_request
from mmspec.serving.call import Call, Step
from mmspec.serving.errors import ApiError, in_clients_words, refused
from mmspec.serving.fields import Fields
from mmspec.serving.settings import ServerSettings
from mmspec.serving.usage import usage


class Form(Protocol):
    """One request's."""

    requests: list[Request]
    streams: bool
    json_schema: Mapping[str, Any] | None  # that the answers are to follow
    heading: "Heading"

    def whole(self, call: Call) -> dict[str, Any]:
        """The body, once all have ended."""

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        """What is sent of a step."""

    def last_events(self, call: Call) -> Iterator[dict[str, Any]]:
        """What is sent when all have ended."""


class Heading:
    """What all bodies and events of a request begin with."""

    def __init__(self, kind: str, prefix: str, model: str) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self._rest = {"object": kind, "created": int(time.time()), "model": model}

    def body(self, choices: list[dict[str, Any]], more: Mapping[str, object]) -> dict[str, Any]:
        return {"id": self.id, **self._rest, "choices": choices, **more}

    def event(self, choices: list[dict[str, Any]], more: Mapping[str, object]) -> dict[str, Any]:
        kind = str(self._rest["object"])
        kind = kind if kind.endswith("_completion") else f"{kind}.chunk"
        return {**self.body(choices, more), "object": kind}


class Streaming:
    """How a body asks for events."""

    def __init__(self, fields: Fields) -> None:
        self.is_on = fields.take("stream", bool) or False
        options = fields.take("stream_options", dict)
        if options and not self.is_on:
            raise refused("stream_options", "got them without stream=true; leave them out")
        own = Fields(options or {})
        self.tells_usage = own.take("include_usage", bool) or False
        own.ignore(["include_obfuscation"])
        own.finish()

    @property
    def usage(self) -> dict[str, object]:
        """In all events but the last, where usage is told at all."""
        return {"usage": None} if self.tells_usage else {}

    def last_events(self, heading: Heading, call: Call) -> Iterator[dict[str, Any]]:
        if self.tells_usage:
            yield heading.event([], told(call))


def told(call: Call) -> dict[str, object]:
    """Beside the choices of a whole answer; `mmspec` is of the first sample of the first prompt."""
    results = ended(call)
    return {"usage": usage(results, call.predicted), "mmspec": speculation(results[0])}


def ended(call: Call) -> list[Result]:
    return [result for result in call.results if result is not None]


def check_model(fields: Fields, settings: ServerSettings) -> None:
    """Raises ApiError for another model's name."""
    name = fields.take("model", str)
    if name not in (None, settings.name):
        raise ApiError(
            404,
            f"no model {name!r:.80} here; expected {settings.name!r}",
            code="model_not_found",
            param="model",
        )


def checked_request(prompt: object, options: Mapping[str, Any]) -> Request:
    """Raises ApiError that names the field."""
    try:
        return build_request(prompt, options)
    except InputError as error:
        message = in_clients_words(error)
        is_field = str(error).partition("=")[0] in FIELD_NAMES
        param = message.partition("=")[0] if is_field else None
        raise ApiError(400, message, param=param) from error


def ends(progress: Progress) -> bool:
    """Whether the sample has ended in a way that its client is told as an end."""
    return progress.finish_reason not in (None, "error", "closed")
