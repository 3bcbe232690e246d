"""POST /v1/responses: what a chat asks and answers, in the form that OpenAI's clients lead with.
An answer is kept where its client asks for that, and another one can go on from it."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmspec.engine import Engine
from mmspec.integrations.answer import finish_word
from mmspec.reading import Reading
from mmspec.requests import Request
from mmspec.row import FinishReason
from mmspec.serving.call import Step
from mmspec.serving.chat_fields import (
    REFUSED,
    read_chat_fields,
    read_effort,
    read_length,
    read_schema,
    read_tools,
    read_top,
    with_effort,
)
from mmspec.serving.errors import ApiError, refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import Answered, check_model, checked_request, ended, read_streaming, told
from mmspec.serving.kept import KeptResponses
from mmspec.serving.logprobs import told_places
from mmspec.serving.options import read_options
from mmspec.serving.response_items import Output, input_items, read_items
from mmspec.serving.settings import ServerSettings

_LOGPROBS = "message.output_text.logprobs"
_NEVER_HERE = ("reasoning.encrypted_content",)  # may be asked for: an answer without it is whole
_IGNORED = ("max_tool_calls", "image", "access_programs")  # of a server's tools; of the cloud
_REFUSED = {
    "conversation": "none is kept here; expected previous_response_id, or all of it as input",
    "background": "no answer can be fetched before it is whole; expected stream=true, or nothing",
    "messages": "is a chat's name; expected input",
    "max_tokens": "is a chat's name; expected max_output_tokens",
    "reasoning_effort": "is a chat's name; expected reasoning with an effort",
    "response_format": "is a chat's name; expected text with a format",
    "background_options": "no answer can be fetched before it is whole; leave it out",
    "prompt": "no prompts are kept here; expected instructions and input",
    "context_management": "nothing is left out of a conversation here; send less of it",
}
_TOLD: dict[str, object] = {  # of the body, and where it says nothing
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": "disabled",
}


class ResponseForm:
    """One response."""

    length_name = "max_output_tokens"
    last_line = ""  # the last event says that it is the last

    def __init__(
        self, body: object, settings: ServerSettings, namespace: str, *, kept: KeptResponses
    ) -> None:
        """Raises ApiError."""
        fields = Fields(body)
        fields.refuse(_REFUSED)
        check_model(fields, settings)
        self._kept = kept if fields.take("store", bool) else None  # where it is to be kept
        self._client = namespace
        before: Sequence[object] = ()
        previous = fields.take("previous_response_id", str)
        if previous is not None:
            before = kept.get(namespace, previous, param="previous_response_id").items
        items = input_items(fields.take_any("input"))
        messages = read_items(items, max_media=settings.max_media, before=before)
        self._items = [*before, *items]
        instructions = fields.take("instructions", str)
        if instructions:
            messages.insert(0, {"role": "system", "content": instructions})
        fields.take("metadata", dict)  # which is told again
        options = read_options(fields, settings, namespace) | read_chat_fields(fields)
        if options.setdefault("n", 1) != 1:  # so that it is said, whatever a batch asks of chats
            raise refused("n", "a response is one answer; ask several times")
        length = read_length(fields, self.length_name)
        if length is not None:
            options["max_new_tokens"] = length
        tools, call = read_tools(fields, options, is_flat=True)
        options |= tools | _logprobs(fields)
        if "tools" in options and "logprobs" in options:
            raise refused("top_logprobs", "tokens of calls have none; leave out these or tools")
        self._effort = _effort(fields)
        text = Fields(fields.take("text", dict) or {})
        form = text.take("format", dict)
        text.refuse(REFUSED)
        text.finish()
        schema = read_schema(form, "text.format", options, is_flat=True)
        self.json_schema = call or schema
        if fields.take("truncation", str) not in (None, "disabled"):
            raise refused("truncation", "nothing is cut off an input here; expected 'disabled'")
        fields.ignore(_IGNORED)
        self.streams, _ = read_streaming(fields)
        fields.finish()
        self.requests = [checked_request(messages, options, self.length_name)]
        self.said = frozenset(options) | ({"logits_processors"} if form else set())
        self._reading: Reading
        self._output: Output
        self._num_events = 0
        given = {name: fields.given.get(name) for name in _TOLD}
        self._heading = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": settings.name,
            **_TOLD,
            **{name: value for name, value in given.items() if value is not None},
        }

    def prepare(self, engine: Engine, request: Request) -> Request:
        request = with_effort(engine, request, self._effort, "reasoning.effort")
        self._reading = Reading(engine.inputs, engine.prepare(request))
        self._output = Output(self._reading.reader())
        return self._reading.request

    def whole(self, call: Answered) -> dict[str, Any]:
        (result,) = ended(call)
        places = told_places(result.logprobs or (), result.finish_reason)
        list(self._output.push(result.text, places))
        list(self._output.finish(is_cut=_is_cut(result.finish_reason)))
        return self._ended(call)

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        if not self._num_events:
            for word in ("created", "in_progress"):
                yield self._numbered({"type": f"response.{word}", "response": self._begun()})
        yield from map(self._numbered, self._output.push(step.text, step.places))
        if step.is_end:
            end = self._output.finish(is_cut=_is_cut(step.progress.finish_reason))
            yield from map(self._numbered, end)

    def last_events(self, call: Answered) -> Iterator[dict[str, Any]]:
        response = self._ended(call)
        kind = f"response.{response['status']}"
        yield self._numbered({"type": kind, "response": response})

    def failure(self, error: ApiError) -> dict[str, Any]:
        """Told twice: as OpenAI's server does, by which its client raises, and as it describes."""
        return self._numbered({**error.body["error"], **error.body, "type": "error"})

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._num_events += 1
        return {"sequence_number": self._num_events - 1, **event}

    def _begun(self) -> dict[str, Any]:
        return {**self._heading, **_state("in_progress"), "output": [], "usage": None}

    def _ended(self, call: Answered) -> dict[str, Any]:
        (result,) = ended(call)
        status = "incomplete" if _is_cut(result.finish_reason) else "completed"
        figures = told(call, self._reading.num_thought(result, self._output.reader))
        state = {**_state(status), "output": self._output.items, "usage": _usage(figures["usage"])}
        body = {**self._heading, **state, "mmspec": figures["mmspec"]}
        if self._kept is not None:
            self._kept.put(self._client, body, [*self._items, *self._output.items])
        return body


def _logprobs(fields: Fields) -> dict[str, Any]:
    top, wanted = read_top(fields), fields.take("include", list) or []
    for name in wanted:
        if name not in (_LOGPROBS, *_NEVER_HERE):
            raise refused("include", f"got {name!r:.80}; expected {_LOGPROBS!r}, or nothing")
    if top is None and _LOGPROBS not in wanted:
        return {}
    return {"logprobs": top or 0}


def _effort(fields: Fields) -> str | None:
    """Summaries may be left to the server, and then there are none."""
    reasoning = Fields(fields.take("reasoning", dict) or {})
    for name in ("summary", "generate_summary"):
        if reasoning.take(name, str) not in (None, "auto"):
            raise refused(f"reasoning.{name}", "reasoning is told whole here; leave it out")
    effort = read_effort(reasoning, "effort", "reasoning.effort")
    reasoning.finish()
    return effort


def _is_cut(reason: FinishReason | None) -> bool:
    return finish_word(reason) == "length"


def _state(status: str) -> dict[str, Any]:
    why = {"reason": "max_output_tokens"} if status == "incomplete" else None
    return {"status": status, "error": None, "incomplete_details": why}


def _usage(told: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's figures by their names here."""
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {"cache_write_tokens": 0, **told["prompt_tokens_details"]},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": told["completion_tokens_details"],
        "total_tokens": told["total_tokens"],
    }
