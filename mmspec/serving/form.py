"""Form: what OpenAI's two ways to ask have in common: a body read, a body or events written."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.integrations.answer import speculation
from mmspec.integrations.guided import JsonGuide
from mmspec.requests import FIELD_NAMES, Request, Result, build_request
from mmspec.serving.call import Step
from mmspec.serving.errors import ApiError, in_clients_words, refused
from mmspec.serving.fields import Fields
from mmspec.serving.settings import ServerSettings
from mmspec.serving.usage import usage


class Answered(Protocol):
    """What became of a form's requests."""

    @property
    def results(self) -> Sequence[Result | None]: ...

    @property
    def predicted(self) -> Sequence[Sequence[int]]:
        """Tokens of their predictions."""


class Form(Protocol):
    """One request's."""

    requests: list[Request]
    said: frozenset[str]  # the options of them that the body names, be it with nothing
    streams: bool
    json_schema: Mapping[str, Any] | None  # that the answers are to follow
    length_name: str  # the field that says how long an answer is
    last_line: str  # of a stream

    def prepare(self, engine: Engine, request: Request) -> Request:
        """One of its requests, ready to be decoded. In any thread; raises InputError."""

    def whole(self, call: Answered) -> dict[str, Any]:
        """The body, once all have ended."""

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        """What is sent of a step that has brought tokens."""

    def last_events(self, call: Answered) -> Iterator[dict[str, Any]]:
        """What is sent when all have ended."""

    def failure(self, error: ApiError) -> dict[str, Any]:
        """What is sent in their place where the call fails."""


class ChoicesForm:
    """What chats and completions write alike: a heading and choices, whole or in chunks."""

    length_name = "max_tokens"
    last_line = "data: [DONE]\n\n"
    json_schema: Mapping[str, Any] | None = None

    def __init__(
        self, fields: Fields, settings: ServerSettings, *, kind: str, chunk: str, prefix: str
    ) -> None:
        self.streams, self.tells_usage = read_streaming(fields)
        self._kind, self._chunk = kind, chunk
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created, self._model = int(time.time()), settings.name
        self._num_thought = 0  # tokens of reasoning

    def prepare(self, engine: Engine, request: Request) -> Request:
        return engine.prepare(request)

    def body(self, choices: list[dict[str, Any]], call: Answered) -> dict[str, Any]:
        return {**self._heading(self._kind), "choices": choices, **told(call, self._num_thought)}

    def event(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.tells_usage else {}
        return {**self._heading(self._chunk), "choices": [choice], **usage}

    def last_events(self, call: Answered) -> Iterator[dict[str, Any]]:
        if self.tells_usage:
            yield {**self._heading(self._chunk), "choices": [], **told(call, self._num_thought)}

    def failure(self, error: ApiError) -> dict[str, Any]:
        return error.body

    def _heading(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """Whether events are asked for, and usage in the last of them."""
    is_on = fields.take("stream", bool) or False
    options = fields.take("stream_options", dict)
    if options and not is_on:
        raise refused("stream_options", "got them without stream=true; leave them out")
    own = Fields(options or {})
    tells_usage = own.take("include_usage", bool) or False
    own.ignore(["include_obfuscation"])
    own.finish()
    return is_on, tells_usage


def told(call: Answered, num_thought: int) -> dict[str, Any]:
    """Beside the choices of a whole answer; `mmspec` is of the first sample of the first prompt."""
    results = ended(call)
    figures = usage(results, call.predicted, num_thought)
    return {"usage": figures, "mmspec": speculation(results[0])}


def ended(call: Answered) -> list[Result]:
    return [result for result in call.results if result is not None]


def follow_schema(form: Form, guide: JsonGuide) -> None:
    """The form's requests are answered in JSON, where it asks for it. Raises InputError,
    MissingExtraError."""
    if form.json_schema is not None:
        form.requests[:] = [
            replace(one, logits_processors=[guide.matching(form.json_schema)])
            for one in form.requests
        ]


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


def checked_request(
    prompt: object, options: Mapping[str, Any], length_name: str = ChoicesForm.length_name
) -> Request:
    """Raises ApiError that names the field."""
    try:
        return build_request(prompt, options)
    except InputError as error:
        message = in_clients_words(error, length_name)
        is_field = str(error).partition("=")[0] in FIELD_NAMES
        param = message.partition("=")[0] if is_field else None
        raise ApiError(400, message, param=param) from error
