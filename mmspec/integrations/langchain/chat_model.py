"""ChatMmspec: the chat model."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables.config import get_config_list
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr

from mmspec.engine import Engine
from mmspec.integrations.answer import finish_word, model_name, speculation, usage
from mmspec.integrations.answer_stream import (
    AnswerStream,
    AsyncAnswerStream,
    ask,
    ask_async,
)
from mmspec.integrations.chosen_engine import chosen_engine
from mmspec.integrations.guided import JsonGuide
from mmspec.integrations.joined_loop import num_ahead
from mmspec.integrations.langchain.each import ask_each, check_wanted, still_wanted
from mmspec.integrations.langchain.messages import as_message, as_passage
from mmspec.integrations.langchain.structured import json_schema, read_as
from mmspec.integrations.options import component_request, component_settings, request_options
from mmspec.integrations.passages import Placement
from mmspec.integrations.tool_calls import call_schema
from mmspec.reading import Answer, Reasoning, ToolCall
from mmspec.requests import Request

# Of a call's keywords, those that LangChain itself reads.
_NO_OPTIONS = frozenset(
    "stream callbacks tags metadata run_name run_id return_exceptions "
    "ls_structured_output_format structured_output_format".split()
)


class ChatMmspec(BaseChatModel):
    """A Hugging Face model, decoded by mmspec, as a LangChain chat model: text and images,
    streaming, batches, tools.

    `model` is loaded as `mmspec.load` does; an `engine` that is there already is shared. Calls may
    come from several threads. `batch`, `abatch` and `generate` decode their prompts together, as
    one ragged batch of at most `decode.max_rows` rows.

    A call's keywords, or those of `bind`, are fields of `mmspec.Request`, LangChain's `stop` and
    `max_tokens` among them, and override the settings here. `passages=[...]` are the texts or
    Documents that were retrieved: see `mmspec.integrations.passages`. Reasoning and tool calls are
    read in the model's own form (`mmspec.reading`); reasoning is a content block, and in
    `additional_kwargs["reasoning_content"]`. An answer's `response_metadata["mmspec"]` says what
    was drafted and accepted, its `usage_metadata` counts tokens.

    Raises InputError, a ValueError, for what cannot be asked; ModelError and ConfigError when it
    is made.
    """

    model: str | None = None  # a folder, a hub name, "tiny-vlm"; a mere name beside `engine`
    engine: Engine | None = Field(default=None, exclude=True, repr=False)
    drafter: str | None = None  # a drafter's name; None: as configured
    overrides: Mapping[str, Any] = Field(default_factory=dict)  # {"decode.max_rows": 16}
    temperature: float | None = None  # 0: greedy; None: as the model's generation_config says
    max_tokens: int | None = None
    seed: int | None = None
    stop: list[str] | None = None
    placement: Placement = "auto"  # of `passages`
    options: Mapping[str, Any] = Field(default_factory=dict)  # further fields of Request

    _guide: JsonGuide = PrivateAttr()

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        """The fields above; others of `mmspec.Request` join `options`. Loads the model, where no
        engine is given."""
        super().__init__(**component_settings(settings, type(self).model_fields))
        made = chosen_engine(
            self.engine, model=self.model, drafter=self.drafter, overrides=self.overrides
        )
        self.engine, self.model = made, self.model or model_name(made)
        self._guide = JsonGuide(made)

    @property
    def _engine(self) -> Engine:
        assert self.engine is not None, "it is there from the first"
        return self.engine

    @property
    def _llm_type(self) -> str:
        return "mmspec"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "drafter", "overrides", "temperature", "max_tokens", "seed", "stop")
        return {name: getattr(self, name) for name in (*names, "placement", "options")}

    # One prompt.

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: object = None,
        **kwargs: Any,
    ) -> ChatResult:
        answers = ask(self._engine, self._request(messages, stop, kwargs), still_wanted())
        check_wanted()
        return self._chat_result(answers)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: object = None,
        **kwargs: Any,
    ) -> ChatResult:
        make = partial(self._request, messages, stop, kwargs)
        return self._chat_result(await ask_async(self._engine, make))

    def _chat_result(self, answers: Sequence[Answer]) -> ChatResult:
        generations = []
        for answer in answers:
            calls = answer.calls
            message = AIMessage(
                content=answer.text,
                additional_kwargs=_thought(answer.reasoning),
                tool_calls=[tool_call(name=c.name, args=dict(c.arguments), id=c.id) for c in calls],
                usage_metadata=_usage(answer),
                response_metadata=self._metadata(answer),
            )
            generations.append(ChatGeneration(message=message))
        first, *others = (answer.result for answer in answers)
        figures = usage(replace(first, others=tuple(others)))
        output = {"token_usage": figures, "model_name": self.model}
        return ChatResult(generations=generations, llm_output=output)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> Generator[ChatGenerationChunk, None, None]:
        request = self._request(messages, stop, kwargs)
        with AnswerStream(self._engine, request, still_wanted()) as streamed:
            for part in streamed:
                yield _told(run_manager, _as_chunk(part))
        check_wanted()
        yield _told(run_manager, self._last_chunk(streamed.answer))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        make = partial(self._request, messages, stop, kwargs)
        async with AsyncAnswerStream(self._engine, make) as streamed:
            async for part in streamed:
                yield await _told_async(run_manager, _as_chunk(part))
        yield await _told_async(run_manager, self._last_chunk(streamed.answer))

    def _last_chunk(self, answer: Answer) -> AIMessageChunk:
        calls = enumerate(answer.calls)
        return AIMessageChunk(
            content="",
            tool_call_chunks=[_call_chunk(call, index) for index, call in calls],
            usage_metadata=_usage(answer),
            response_metadata=self._metadata(answer),
            chunk_position="last",
        )

    # Several prompts: of threads and tasks, and so decoded together.

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        *args: Any,
        run_id: Any = None,
        **kw: Any,
    ) -> LLMResult:
        """As in LangChain; the prompts are decoded together."""
        ask = super().generate

        def one(prompt: list[BaseMessage], run_id: Any) -> LLMResult:
            return ask([prompt], stop, *args, run_id=run_id, **kw)

        run_ids = [run_id] + [None] * len(messages)
        told = ask_each(one, messages, run_ids, most=num_ahead(self._engine))
        return LLMResult(
            generations=[own.generations[0] for own in told],
            llm_output=self._combine_llm_outputs([own.llm_output for own in told]),
            run=[run for own in told for run in own.run or ()],
        )

    def batch(
        self,
        inputs: Sequence[Any],
        config: Any = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As in LangChain, with as many threads as prompts are soon decoded."""

        def one(prompt: Any, config: Any) -> Any:
            try:
                return self.invoke(prompt, config, **kwargs)
            except Exception as error:
                if return_exceptions:
                    return error
                raise

        configs = get_config_list(config, len(inputs))
        bound = configs[0].get("max_concurrency") if configs else None
        return ask_each(one, inputs, configs, most=bound or num_ahead(self._engine))

    def _combine_llm_outputs(self, llm_outputs: list[Any]) -> dict[str, Any]:
        total: Counter[str] = Counter()
        for output in llm_outputs:
            total.update(output["token_usage"] if output else {})  # None: a cache knew the answer
        return {"token_usage": dict(total), "model_name": self.model}

    # What is asked, and what is told.

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any]],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model with tools, as LangChain writes them. `tool_choice`: "auto", "none", "any" or a
        tool's name; a call that has to be made follows its schema (the extra 'guided')."""
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        call_schema(schemas, tool_choice)  # raises
        return self.bind(tools=schemas, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model whose answers are values of `schema`, a pydantic model, a TypedDict or a JSON
        schema: no token that leads out of it can be chosen, and those that it forces are drafted.
        The model does not see the schema: say in the prompt what is wanted. `method` and `strict`
        are LangChain's; the answer is of the form whatever they are. Needs the extra 'guided'.

        With `include_raw` a dictionary of "raw", "parsed" and "parsing_error"."""
        wanted = json_schema(schema)
        told = {"kwargs": {"method": "json_schema"}, "schema": wanted}
        llm = self.bind(json_schema=wanted, ls_structured_output_format=told, **kwargs)
        return read_as(schema, llm, include_raw=include_raw)

    def get_token_ids(self, text: str) -> list[int]:
        """Of the model's own tokenizer: LangChain counts, and cuts chats to a length, by these."""
        if self.custom_get_token_ids is not None or self._engine.tokenizer is None:
            return super().get_token_ids(text)
        ids: list[int] = self._engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, call: Mapping[str, Any]
    ) -> Request:
        names = ("temperature", "max_tokens", "seed", "stop")
        settings = {name: getattr(self, name) for name in names}
        own = {name: value for name, value in call.items() if name not in _NO_OPTIONS}
        options = request_options(self.options, settings, {**own, "stop": stop or own.get("stop")})
        passages = options.get("passages")
        if isinstance(passages, list | tuple):
            options["passages"] = [as_passage(one) for one in passages]
        prompt = [as_message(message) for message in messages]
        return component_request(prompt, options, placement=self.placement, guide=self._guide)

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        result, calls_tools = answer.result, bool(answer.calls)
        metadata = {
            "model_name": self.model,
            "finish_reason": finish_word(result.finish_reason, calls_tools=calls_tools),
            "mmspec": speculation(result),
        }
        if result.logprobs is not None:
            metadata["logprobs"] = {
                "content": [
                    {
                        "token": place.chosen.text,
                        "logprob": place.chosen.logprob,
                        "top_logprobs": [
                            {"token": one.text, "logprob": one.logprob} for one in place.top
                        ],
                    }
                    for place in result.logprobs
                ]
            }
        return metadata


def _usage(answer: Answer) -> UsageMetadata:
    stats, thought = answer.result.stats, answer.reasoning_tokens
    figures = UsageMetadata(
        input_tokens=stats.prompt_tokens,
        output_tokens=stats.new_tokens,
        total_tokens=stats.prompt_tokens + stats.new_tokens,
        input_token_details={"cache_read": stats.reused_tokens},
    )
    if thought:
        figures["output_token_details"] = {"reasoning": thought}
    return figures


def _thought(text: str) -> dict[str, Any]:
    """Where LangChain's own content blocks look for reasoning."""
    return {"reasoning_content": text} if text else {}


def _as_chunk(part: str | Reasoning) -> AIMessageChunk:
    if isinstance(part, Reasoning):
        return AIMessageChunk(content="", additional_kwargs=_thought(part.text))
    return AIMessageChunk(content=part)


def _call_chunk(call: ToolCall, index: int) -> Any:
    return tool_call_chunk(name=call.name, args=json.dumps(call.arguments), id=call.id, index=index)


def _told(run_manager: Any, message: AIMessageChunk) -> ChatGenerationChunk:
    chunk = ChatGenerationChunk(message=message)
    if run_manager is not None:
        run_manager.on_llm_new_token(message.content, chunk=chunk)
    return chunk


async def _told_async(run_manager: Any, message: AIMessageChunk) -> ChatGenerationChunk:
    chunk = ChatGenerationChunk(message=message)
    if run_manager is not None:
        await run_manager.on_llm_new_token(message.content, chunk=chunk)
    return chunk
