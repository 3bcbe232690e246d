"""POST /v1/chat/completions: messages, with images, tools and a predicted answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmspec.engine import Engine
from mmspec.integrations.answer import finish_word
from mmspec.integrations.tool_calls import called
from mmspec.logprobs import TokenLogprobs
from mmspec.reading import AnswerReader, Reading, Reasoning, ToolCall
from mmspec.requests import Request, Result
from mmspec.serving.call import Step
from mmspec.serving.chat_fields import (
    read_chat_fields,
    read_effort,
    read_length,
    read_schema,
    read_tools,
    read_top,
    with_effort,
)
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import Answered, ChoicesForm, check_model, checked_request, ended
from mmspec.serving.logprobs import of_chat, told_places
from mmspec.serving.messages import read_messages
from mmspec.serving.options import read_options
from mmspec.serving.settings import ServerSettings

_REFUSED = {
    "functions": "is OpenAI's old name; expected tools",
    "function_call": "is OpenAI's old name; expected tool_choice",
    "audio": "mmspec says nothing aloud; leave it out",
    "reasoning": "is a response's name; expected reasoning_effort",
    "web_search_options": "this server searches nothing; leave it out",
}


class ChatForm(ChoicesForm):
    """One chat completion."""

    def __init__(self, body: object, settings: ServerSettings, namespace: str) -> None:
        """Raises ApiError."""
        fields = Fields(body)
        kind = "chat.completion"
        super().__init__(fields, settings, kind=kind, chunk=f"{kind}.chunk", prefix="chatcmpl")
        check_model(fields, settings)
        messages = read_messages(fields.take_any("messages"), max_media=settings.max_media)
        options = read_options(fields, settings, namespace)
        options |= _length(fields) | _logprobs(fields) | read_chat_fields(fields)
        tools, call = read_tools(fields, options, is_flat=False)
        options |= tools
        form = fields.take("response_format", dict)
        schema = read_schema(form, "response_format", options, is_flat=False)
        self.json_schema = call or schema
        self._effort = read_effort(fields, "reasoning_effort", "reasoning_effort")
        fields.refuse(_REFUSED)
        _check_modalities(fields)
        fields.finish()
        self.requests = [checked_request(messages, options)]
        self.said = frozenset(options) | ({"logits_processors"} if form else set())
        self._has_logprobs = "logprobs" in options
        self._reading: Reading
        self._readers: dict[int, AnswerReader] = {}  # by sample

    def prepare(self, engine: Engine, request: Request) -> Request:
        request = with_effort(engine, request, self._effort, "reasoning_effort")
        self._reading = Reading(engine.inputs, super().prepare(engine, request))
        return self._reading.request

    def whole(self, call: Answered) -> dict[str, Any]:
        (result,) = ended(call)
        return self.body([self._choice(sample) for sample in result.samples], call)

    def events(self, step: Step) -> Iterator[dict[str, Any]]:
        progress = step.progress
        index, places = progress.sample, step.places
        if index not in self._readers:
            self._readers[index] = self._reading.reader()
            yield self._event(index, {"role": "assistant", "content": ""})
        reader = self._readers[index]
        for delta in self._deltas(reader, step):
            yield self._event(index, delta, places)
            places = ()
        if places:  # of tokens whose text is held back, or a mark
            yield self._event(index, {"content": ""}, places)
        if step.is_end:
            word = finish_word(progress.finish_reason, calls_tools=bool(reader.calls))
            yield self._event(index, {}, finish_reason=word)

    def last_events(self, call: Answered) -> Iterator[dict[str, Any]]:
        if self.tells_usage:
            (result,) = ended(call)
            self._num_thought = sum(
                self._reading.num_thought(sample, self._readers[sample.sample])
                for sample in result.samples
                if sample.sample in self._readers
            )
        yield from super().last_events(call)

    def _deltas(self, reader: AnswerReader, step: Step) -> Iterator[dict[str, Any]]:
        """What the step has brought."""
        number = len(reader.calls)
        for part in reader.parts(step.text, is_last=step.is_end):
            if isinstance(part, ToolCall):
                yield {"tool_calls": [{"index": number, **_as_call(part)}]}
                number += 1
            elif isinstance(part, Reasoning):
                yield {"reasoning_content": part.text}
            else:
                yield {"content": part}

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
        return self.event(choice)

    def _choice(self, sample: Result) -> dict[str, Any]:
        answer = self._reading.answer(sample)
        self._num_thought += answer.reasoning_tokens
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_as_call(call) for call in answer.calls]
        places = sample.logprobs
        return {
            "index": sample.sample,
            "message": message,
            "logprobs": None
            if places is None
            else of_chat(told_places(places, sample.finish_reason)),
            "finish_reason": finish_word(sample.finish_reason, calls_tools=bool(answer.calls)),
        }


def _as_call(call: ToolCall) -> dict[str, Any]:
    return called(call.name, call.arguments_json, call.id)


def _length(fields: Fields) -> dict[str, Any]:
    old, new = fields.take("max_tokens", int), read_length(fields, "max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise refused("max_tokens", f"got {old}, and max_completion_tokens={new}; give one")
    length = new if new is not None else old
    return {} if length is None else {"max_new_tokens": length}


def _logprobs(fields: Fields) -> dict[str, Any]:
    wanted, top = fields.take("logprobs", bool), read_top(fields)
    if top is not None and not wanted:
        raise refused("top_logprobs", "got it without logprobs=true; give both")
    return {"logprobs": top or 0} if wanted else {}


def _check_modalities(fields: Fields) -> None:
    modalities = fields.take("modalities", list)
    if modalities not in (None, ["text"]):
        raise refused("modalities", f"got {modalities!r:.60}; expected ['text']")
