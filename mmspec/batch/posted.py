"""Posted: lines of OpenAI's batch files, each answered as the server answers its body."""

import uuid
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mmspec.engine import Engine
from mmspec.errors import failed_to_begin
from mmspec.inputs.messages import says_system
from mmspec.integrations.answer import model_name
from mmspec.integrations.guided import JsonGuide
from mmspec.requests import Request, Result
from mmspec.serving.call import prepared
from mmspec.serving.errors import ApiError, as_api_error, refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import Form, ended, follow_schema
from mmspec.serving.forms import forms
from mmspec.serving.kept import KeptResponses
from mmspec.serving.settings import ServerSettings

LINE = frozenset(("custom_id", "url", "body"))  # what every such line has
_REFUSED = {
    "stream": "an answer is written whole; leave it out",
    "previous_response_id": "no response is kept; expected all of the conversation as input",
}
_NEVER_SAID = {"namespace"}  # a server's own, of its client
_MANY = 2**31  # bounds are for a server's clients, not for who has the machine
_DEFAULTS = {one.name: one.default for one in fields(Request)}


@dataclass(frozen=True)
class Posted:
    """What a line says beside its `custom_id`."""

    method: object
    url: object
    body: object


class PostedCall:
    """One line under way: what its body asks for, and what becomes of that."""

    def __init__(self, name: str, form: Form) -> None:
        self.requests: list[Request] = []
        self.predicted: list[tuple[int, ...]] = []
        self.results: list[Result | None] = []
        self._name = name
        self._form = form

    def values(self) -> dict[str, object]:
        """What is written beside its id, once all have their results. Raises ApiError where one
        failed."""
        for result in ended(self):
            for sample in result.samples:
                if sample.error is not None:
                    raise _as_told(sample.error, self._form)
        return _response(self._name, 200, self._form.whole(self))


class Desk:
    """Where lines are posted: the server's forms for one engine, without any HTTP."""

    def __init__(self, engine: Engine, name: str | None) -> None:
        """`name`: of the model, as answers call it; None: what it was loaded from."""
        self._engine = engine
        self._settings = ServerSettings(
            name=name or model_name(engine),
            max_media=_MANY,
            max_samples=_MANY,
            max_kept_bytes=0,
        )
        self._forms = forms(KeptResponses(self._settings))
        self._json = JsonGuide(engine)

    def open(self, name: str, posted: Posted, options: Mapping[str, Any]) -> PostedCall:
        """Its requests, ready to be decoded. `options` are those of a request, where the body says
        nothing of them. Raises ApiError."""
        form = self._form(posted)
        call = PostedCall(name, form)
        try:
            form.requests[:] = [
                _with_defaults(request, options, place, form.said - _NEVER_SAID)
                for place, request in enumerate(form.requests)
            ]
            follow_schema(form, self._json)
            for request in form.requests:
                asked, predicted = prepared(form.prepare, self._engine, request, self._settings)
                call.requests.append(asked)
                call.predicted.append(predicted)
                call.results.append(None)
        except Exception as error:  # raised again, as what its line is told
            raise _as_told(error, form) from error
        return call

    def _form(self, posted: Posted) -> Form:
        form = self._forms.get(posted.url) if isinstance(posted.url, str) else None
        if form is None:
            expected = ", ".join(self._forms)
            raise ApiError(404, f"got the url {posted.url!r:.80}; expected one of {expected}")
        if posted.method != "POST":
            raise refused("method", f"got {posted.method!r:.40}; expected 'POST'")
        given = Fields(posted.body)
        given.refuse(_REFUSED)
        # Which model answers the command says, whatever one the file was written for.
        body = {name: value for name, value in given.given.items() if name != "model"}
        return form(body, self._settings, "")


def refusal_values(name: str, error: ApiError) -> dict[str, object]:
    """What is written of a line that is not answered, beside its id."""
    return _response(name, error.status, error.body)


def _response(name: str, status: int, body: Mapping[str, Any]) -> dict[str, object]:
    request_id = f"req_{uuid.uuid4().hex}"
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"custom_id": name, "response": response, "error": None}


def _with_defaults(
    request: Request, options: Mapping[str, Any], place: int, said: Container[str]
) -> Request:
    """With the options that it does not say itself; a text without a template has no system. By its
    place in the body it has the next seed: the same text is not answered twice the same."""
    left = {
        name: value
        for name, value in options.items()
        if name not in said and getattr(request, name) == _DEFAULTS[name]
    }
    if not isinstance(request.prompt, list) or says_system(request.prompt):
        left.pop("system", None)
    if "seed" in left:
        left["seed"] += place
    return replace(request, **left)


def _as_told(error: Exception, form: Form) -> ApiError:
    """All of it: here is no log of a server that would say why."""
    told = as_api_error(error, form.length_name)
    if told.code == "internal_error":
        return replace(told, message=str(failed_to_begin(error)))
    return told
