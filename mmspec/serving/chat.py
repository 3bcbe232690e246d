"""POST /v1/chat/completions: messages, with images, tools and a predicted answer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmspec.integrations.answer import finish_word
from mmspec.integrations.tool_calls import ToolCall, ToolCallReader, read_answer
from mmspec.logprobs import TokenLogprobs
from mmspec.requests import Progress, Result
from mmspec.serving.call import Call, Step
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import (
    Heading,
    Streaming,
    check_model,
    checked_request,
    ended,
    ends,
    told,
)
from mmspec.serving.logprobs import of_chat, told_places
from mmspec.serving.messages import read_messages
from mmspec.serving.options import read_options
from mmspec.serving.settings import ServerSettings

_MOST_TOP = 20
_REFUSED = {
    "functions": "is OpenAI's old name; expected tools",
    "function_call": "is OpenAI's old name; expected tool_choice",
    "audio": "mmspec says nothing aloud; leave it out",
    "moderation": "nothing here moderates; leave it out",
    "web_search_options": "this server searches nothing; leave it out",
    "reasoning_effort": "is no option of this model; expected chat_template_kwargs, where its "
    "template has a switch",
    "verbosity": "is no option of this model; say it in a message",
}


class ChatForm:
    """One chat completion."""

    def __init__(self, body: object, settings: ServerSettings, namespace: str) -> None:
        """Raises ApiError."""
        fields = Fields(body)
        check_model(fields, settings)
        messages = read_messages(fields.take_any("messages"), max_media=settings.max_media)
        options = read_options(fields, settings, namespace)
        options |= _length(fields) | _logprobs(fields) | _tools(fields) | _prediction(fields)
        self.json_schema: Mapping[str, Any] | None = _json_schema(fields)
        for name in ("tools", "ignore_eos") if self.json_schema is not None else ():
            if options.get(name):
                raise refused("response_format", f"JSON does not go with {name}; give one of them")
        arguments = fields.take("chat_template_kwargs", dict)
        if arguments:
            options["template_arguments"] = _switches(arguments)
        self._streaming = Streaming(fields)
        fields.refuse(_REFUSED)
        _check_modalities(fields)
        fields.finish()
        self.requests = [checked_request(messages, options)]
        self.streams = self._streaming.is_on
        self.heading = Heading("chat.completion", "chatcmpl", settings.name or "")
        self._has_tools = "tools" in options
        self._has_logprobs = "logprobs" in options
        self._readers: dict[int, ToolCallReader] = {}  # by sample
        self._begun: set[int] = set()

    def whole(self, call: Call) -> dict[str, Any]:
        (result,) = ended(call)
        return self.heading.body([self._choice(sample) for sample in result.samples], told(call))

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        progress = step.progress
        if progress.result is not None or not progress.num_tokens:
            return
        index = progress.sample
        if index not in self._begun:
            self._begun.add(index)
            yield self._event(index, {"role": "assistant", "content": ""})
        text, calls = self._read(progress)
        places = told_places(progress.logprobs, progress.finish_reason)
        if text or places:
            yield self._event(index, {"content": text}, places)
        if calls:
            yield self._event(index, {"tool_calls": calls})
        if ends(progress):
            has_calls = bool(self._readers[index].calls) if self._has_tools else False
            word = finish_word(progress.finish_reason, calls_tools=has_calls)
            yield self._event(index, {}, finish_reason=word)

    def last_events(self, call: Call) -> Iterator[dict[str, Any]]:
        return self._streaming.last_events(self.heading, call)

    def _read(self, progress: Progress) -> tuple[str, list[dict[str, Any]]]:
        """The new text and the calls that were completed with it."""
        text = "".join(piece.text for piece in progress.pieces)
        if not self._has_tools:
            return text, []
        reader = self._readers.setdefault(progress.sample, ToolCallReader())
        num_before = len(reader.calls)
        text = reader.push(text)
        if ends(progress):
            text += reader.finish()
        new = list(enumerate(reader.calls))[num_before:]
        return text, [{"index": number, **_as_call(call)} for number, call in new]

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        places: Sequence[TokenLogprobs] = (),
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": of_chat(places) if self._has_logprobs and places else None,
            "finish_reason": finish_reason,
        }
        return self.heading.event([choice], self._streaming.usage)

    def _choice(self, sample: Result) -> dict[str, Any]:
        text, calls = read_answer(sample.text, has_tools=self._has_tools)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["content"] = text or None
            message["tool_calls"] = [_as_call(call) for call in calls]
        places = sample.logprobs
        return {
            "index": sample.sample,
            "message": message,
            "logprobs": None
            if places is None
            else of_chat(told_places(places, sample.finish_reason)),
            "finish_reason": finish_word(sample.finish_reason, calls_tools=bool(calls)),
        }


def _as_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _length(fields: Fields) -> dict[str, Any]:
    old, new = fields.take("max_tokens", int), fields.take("max_completion_tokens", int)
    if old is not None and new is not None and old != new:
        raise refused("max_tokens", f"got {old}, and max_completion_tokens={new}; give one")
    length = new if new is not None else old
    if new is not None and new < 1:  # `old` is checked with the request, by its own name
        raise refused("max_completion_tokens", f"got {new}; expected a whole number >= 1")
    return {} if length is None else {"max_new_tokens": length}


def _logprobs(fields: Fields) -> dict[str, Any]:
    wanted, top = fields.take("logprobs", bool), fields.take("top_logprobs", int)
    if top is not None and not wanted:
        raise refused("top_logprobs", "got it without logprobs=true; give both")
    if top is not None and not 0 <= top <= _MOST_TOP:
        raise refused("top_logprobs", f"got {top}; expected 0 to {_MOST_TOP}")
    return {"logprobs": top or 0} if wanted else {}


def _tools(fields: Fields) -> dict[str, Any]:
    tools, choice = fields.take("tools", list), fields.take_any("tool_choice")
    if fields.take("parallel_tool_calls", bool) is False:
        raise refused("parallel_tool_calls", "a model's own text decides how many it makes")
    if choice not in (None, "auto", "none"):
        raise refused(
            "tool_choice",
            f"got {choice!r:.80}; expected 'auto' or 'none': a model's own text decides whether it "
            "calls a tool",
        )
    for tool in tools or ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refused(
                "tools",
                f'got {tool!r:.80}; expected {{"type": "function", "function": {{"name": ...}}}}',
            )
    return {"tools": tools} if tools and choice != "none" else {}


def _prediction(fields: Fields) -> dict[str, Any]:
    given = fields.take("prediction", dict)
    if given is None:
        return {}
    own = Fields(given)
    kind, content = own.take("type", str), own.take_any("content")
    own.finish()
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        known = [text for text in texts if isinstance(text, str)]
        content = "".join(known) if len(known) == len(texts) else None
    if kind != "content" or not isinstance(content, str):
        raise refused(
            "prediction", f'got {given!r:.80}; expected {{"type": "content", "content": "..."}}'
        )
    return {"prediction": content}


def _json_schema(fields: Fields) -> dict[str, Any] | None:
    """Of the answer that the body asks for."""
    given = fields.take("response_format", dict)
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    described = given.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise refused(
            "response_format",
            f'got {given!r:.80}; expected {{"type": "text"}}, {{"type": "json_object"}} or '
            '{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}',
        )
    return schema


def _switches(arguments: dict[str, Any]) -> dict[str, Any]:
    """Variables of the chat template: nothing that could stand for text of a message."""
    for name, value in arguments.items():
        if not isinstance(value, bool | int | float | None) or name == "chat_template":
            raise refused(
                "chat_template_kwargs",
                f"got {name}={value!r:.60}; expected switches and numbers, as enable_thinking",
            )
    return arguments


def _check_modalities(fields: Fields) -> None:
    modalities = fields.take("modalities", list)
    if modalities not in (None, ["text"]):
        raise refused("modalities", f"got {modalities!r:.60}; expected ['text']")
