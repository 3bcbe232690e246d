"""POST /v1/chat/completions: messages, with images, tools and a predicted answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmspec.integrations.answer import finish_word
from mmspec.integrations.tool_calls import ToolCall, ToolCallReader, called, read_answer
from mmspec.logprobs import TokenLogprobs
from mmspec.requests import Progress, Result
from mmspec.serving.call import Call, Step
from mmspec.serving.chat_fields import (
    read_chat_fields,
    read_length,
    read_schema,
    read_tools,
    read_top,
)
from mmspec.serving.errors import refused
from mmspec.serving.fields import Fields
from mmspec.serving.form import (
    ChoicesForm,
    check_model,
    checked_request,
    ended,
    ends,
)
from mmspec.serving.logprobs import of_chat, told_places
from mmspec.serving.messages import read_messages
from mmspec.serving.options import read_options
from mmspec.serving.settings import ServerSettings

_REFUSED = {
    "functions": "is OpenAI's old name; expected tools",
    "function_call": "is OpenAI's old name; expected tool_choice",
    "audio": "mmspec says nothing aloud; leave it out",
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
        fields.refuse(_REFUSED)
        _check_modalities(fields)
        fields.finish()
        self.requests = [checked_request(messages, options)]
        self._tools = self.requests[0].tools
        self._has_logprobs = "logprobs" in options
        self._readers: dict[int, ToolCallReader] = {}  # by sample
        self._begun: set[int] = set()

    def whole(self, call: Call) -> dict[str, Any]:
        (result,) = ended(call)
        return self.body([self._choice(sample) for sample in result.samples], call)

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
            has_calls = bool(self._readers[index].calls) if self._tools else False
            word = finish_word(progress.finish_reason, calls_tools=has_calls)
            yield self._event(index, {}, finish_reason=word)

    def _read(self, progress: Progress) -> tuple[str, list[dict[str, Any]]]:
        """The new text and the calls that were completed with it."""
        text = "".join(piece.text for piece in progress.pieces)
        if not self._tools:
            return text, []
        reader = self._readers.setdefault(progress.sample, ToolCallReader(self._tools))
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
        return self.event(choice)

    def _choice(self, sample: Result) -> dict[str, Any]:
        text, calls = read_answer(sample.text, self._tools)
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
