"""MmspecChatGenerator: the component."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    ReasoningContent,
    StreamingCallbackT,
    StreamingChunk,
    ToolCall,
    select_streaming_callback,
)
from haystack.dataclasses.streaming_chunk import ToolCallDelta
from haystack.tools import (
    ToolsType,
    deserialize_tools_or_toolset_inplace,
    flatten_tools_or_toolsets,
    serialize_tools_or_toolset,
)
from haystack.utils import deserialize_callable, serialize_callable

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.inputs.passages import Passages, passage_list
from mmspec.integrations.answer import metadata, model_name
from mmspec.integrations.answer_stream import (
    AnswerStream,
    AsyncAnswerStream,
    ask,
    ask_async,
)
from mmspec.integrations.chosen_engine import chosen_engine
from mmspec.integrations.guided import JsonGuide
from mmspec.integrations.haystack.messages import as_message, as_passage
from mmspec.integrations.options import component_request, request_options
from mmspec.integrations.passages import Placement
from mmspec.reading import Answer, Reasoning
from mmspec.requests import Request


@component
class MmspecChatGenerator:
    """A Hugging Face model, decoded by mmspec, as a Haystack chat generator: text and images,
    streaming, reasoning, tools, in sync and async pipelines.

    `replies[0].meta` holds model, finish_reason, usage and, under "mmspec", what was drafted and
    accepted. A pipeline with it is written and read by name of the model; reading needs
    `Pipeline.loads(text, allowed_modules=["mmspec.*"])`, since Haystack imports from other
    packages only what it is allowed to.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        engine: Engine | None = None,
        drafter: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        placement: Placement = "auto",
        generation_kwargs: Mapping[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
    ) -> None:
        """`model` is a folder, a hub name or "tiny-vlm", loaded as `mmspec.load` does when the
        pipeline is warmed up; an `engine` that is there already is shared, and then the pipeline
        cannot be written. `drafter` and `overrides` are those of `mmspec.load`. `placement` says
        where documents go: see `mmspec.integrations.passages`. `generation_kwargs` are fields of
        `mmspec.Request`, `max_tokens` among them, and `json_schema`, which the answer follows token
        by token (the extra 'guided')."""
        if engine is None and model is None:
            raise InputError("got no model; expected a folder, a name, or engine=")
        self.model = model
        self.drafter = drafter
        self.overrides = dict(overrides or {})
        self.placement: Placement = placement
        self.generation_kwargs = dict(generation_kwargs or {})
        self.streaming_callback = streaming_callback
        self.tools = tools
        self._given = engine
        self._engine: Engine | None = None
        self._guide: JsonGuide
        self._loading = threading.Lock()

    def warm_up(self) -> None:
        """Loads the model, once. Raises ModelError and ConfigError."""
        with self._loading:
            if self._engine is None:
                made = chosen_engine(
                    self._given, model=self.model, drafter=self.drafter, overrides=self.overrides
                )
                self._engine, self._guide = made, JsonGuide(made)

    def to_dict(self) -> dict[str, Any]:
        """Raises InputError for a component that was given its engine."""
        if self._given is not None:
            raise InputError(
                "this MmspecChatGenerator was given an engine, which a pipeline's file cannot "
                "hold; make it with model= to write it"
            )
        callback = self.streaming_callback
        return default_to_dict(
            self,
            model=self.model,
            drafter=self.drafter,
            overrides=self.overrides,
            placement=self.placement,
            generation_kwargs=self.generation_kwargs,
            streaming_callback=serialize_callable(callback) if callback else None,
            tools=serialize_tools_or_toolset(self.tools),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MmspecChatGenerator":
        settings = data.get("init_parameters", {})
        deserialize_tools_or_toolset_inplace(settings, key="tools")
        if settings.get("streaming_callback"):
            settings["streaming_callback"] = deserialize_callable(settings["streaming_callback"])
        return default_from_dict(cls, data)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        documents: list[Document] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """The answer to `messages`; with `n` samples, that many replies. The texts of `documents`
        are passages. `generation_kwargs` and `tools` take the place of those it was made with.

        Raises InputError, a ValueError, for what cannot be asked."""
        callback = select_streaming_callback(
            self.streaming_callback, streaming_callback, requires_async=False
        )
        request = self._request(messages, documents, generation_kwargs, tools)
        if callback is None:
            return {"replies": self._replies(ask(self._ready, request))}
        with AnswerStream(self._ready, request) as stream:
            chunks = _Chunks(self)
            for part in stream:
                callback(chunks.of_part(part))
        reply = self._reply(stream.answer)
        for chunk in chunks.last(reply):
            callback(chunk)
        return {"replies": [reply]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        documents: list[Document] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """As `run`, together with what else is asked meanwhile; the callback may be a coroutine."""
        callback = select_streaming_callback(
            self.streaming_callback, streaming_callback, requires_async=True
        )
        make = partial(self._request, messages, documents, generation_kwargs, tools)
        engine = await asyncio.to_thread(lambda: self._ready)
        if callback is None:
            return {"replies": self._replies(await ask_async(engine, make))}

        async def tell(chunk: StreamingChunk) -> None:
            waited_for = callback(chunk)
            if waited_for is not None:
                await waited_for

        async with AsyncAnswerStream(engine, make) as stream:
            chunks = _Chunks(self)
            async for part in stream:
                await tell(chunks.of_part(part))
        reply = self._reply(stream.answer)
        for chunk in chunks.last(reply):
            await tell(chunk)
        return {"replies": [reply]}

    @property
    def _ready(self) -> Engine:
        self.warm_up()
        assert self._engine is not None
        return self._engine

    def _request(
        self,
        messages: list[ChatMessage] | str,
        documents: list[Document] | None,
        generation_kwargs: dict[str, Any] | None,
        tools: ToolsType | None,
    ) -> Request:
        if isinstance(messages, str):
            messages = [ChatMessage.from_user(messages)]
        found = flatten_tools_or_toolsets(tools or self.tools)
        called = {"tools": [{"type": "function", "function": tool.tool_spec} for tool in found]}
        options = request_options(
            self.generation_kwargs, generation_kwargs or {}, called if found else {}
        )
        if documents:
            given = passage_list(cast(Passages, options.get("passages", ())))
            options["passages"] = [*given, *map(as_passage, documents)]
        prompt = [as_message(message) for message in messages]
        self.warm_up()
        return component_request(prompt, options, placement=self.placement, guide=self._guide)

    def _replies(self, answers: Sequence[Answer]) -> list[ChatMessage]:
        return [self._reply(answer, index) for index, answer in enumerate(answers)]

    def _reply(self, answer: Answer, index: int = 0) -> ChatMessage:
        model, calls = self.model or model_name(self._ready), answer.calls
        return ChatMessage.from_assistant(
            answer.text,
            meta={"index": index, **metadata(answer, model=model)},
            tool_calls=[ToolCall(call.name, dict(call.arguments), id=call.id) for call in calls],
            reasoning=answer.reasoning or None,
        )


class _Chunks:
    """What a callback is told of one answer."""

    def __init__(self, component: MmspecChatGenerator) -> None:
        self._info = ComponentInfo.from_component(component)
        self._is_first = True

    def of_part(self, part: str | Reasoning) -> StreamingChunk:
        is_first, self._is_first = self._is_first, False
        place: dict[str, Any] = {"component_info": self._info, "index": 0, "start": is_first}
        if isinstance(part, Reasoning):
            return StreamingChunk("", reasoning=ReasoningContent(part.text), **place)
        return StreamingChunk(part, **place)

    def last(self, reply: ChatMessage) -> Iterator[StreamingChunk]:
        """Behind the text: the calls, and how it ended."""
        for index, call in enumerate(reply.tool_calls, start=1):
            delta = ToolCallDelta(index, call.tool_name, json.dumps(call.arguments), call.id)
            yield StreamingChunk(
                "", component_info=self._info, index=index, start=True, tool_calls=[delta]
            )
        reason = reply.meta["finish_reason"]
        yield StreamingChunk("", meta=reply.meta, component_info=self._info, finish_reason=reason)
