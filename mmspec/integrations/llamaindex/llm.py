"""MmspecLLM: the LLM."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from llama_index.core.base.llms.generic_utils import (
    astream_chat_response_to_completion_response,
    chat_response_to_completion_response,
    stream_chat_response_to_completion_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.integrations.answer import broken_form, metadata, model_name, usage
from mmspec.integrations.answer_stream import (
    AnswerStream,
    AsyncAnswerStream,
    ask,
    ask_async,
)
from mmspec.integrations.chosen_engine import chosen_engine
from mmspec.integrations.guided import JsonGuide
from mmspec.integrations.llamaindex.messages import as_message
from mmspec.integrations.options import component_request, component_settings, request_options
from mmspec.integrations.passages import Placement
from mmspec.params import DEFAULT_MAX_NEW_TOKENS
from mmspec.reading import Answer, Reasoning, ToolCall
from mmspec.requests import Request

Form = TypeVar("Form", bound=BaseModel)


class MmspecLLM(FunctionCallingLLM):
    """A Hugging Face model, decoded by mmspec, as a LlamaIndex LLM: text and images, streaming.

    `model` is loaded as `mmspec.load` does; an `engine` that is there already is shared. Calls may
    come from several threads and tasks, and are decoded together.

    A call's keywords are fields of `mmspec.Request`, `max_tokens` among them, and override the
    settings here. `passages=[...]` are the texts that were retrieved: see
    `mmspec.integrations.passages`. `response.raw` holds model, finish_reason, usage and, under
    "mmspec", what was drafted and accepted.

    A model whose chat template knows tools calls them, in agents too; its calls, and what it thinks
    before them (a ThinkingBlock), are read in its own form (`mmspec.reading`). A call that has to
    be made (`tool_required`) follows the tools' schemas by a grammar.

    Answers of a form (`as_structured_llm`, `structured_predict`) follow it by a grammar: no token
    that leads out of it can be chosen, and those that it forces are drafted. The model does not see
    the form: say in the prompt what is wanted. That needs the extra 'guided'.

    Raises InputError, a ValueError, for what cannot be asked; ModelError and ConfigError when it
    is made.
    """

    model: str | None = None  # a folder, a hub name, "tiny-vlm"; a mere name beside `engine`
    drafter: str | None = None  # a drafter's name; None: as configured
    overrides: dict[str, Any] = Field(default_factory=dict)  # {"decode.max_rows": 16}
    temperature: float | None = None  # 0: greedy; None: as the model's generation_config says
    max_tokens: int | None = None
    seed: int | None = None
    placement: Placement = "auto"  # of `passages`
    options: dict[str, Any] = Field(default_factory=dict)  # further fields of Request

    model_config = ConfigDict(extra="forbid")
    _engine: Engine = PrivateAttr()
    _guide: JsonGuide = PrivateAttr()

    def __init__(self, *, engine: Engine | None = None, **settings: Any) -> None:
        super().__init__(**component_settings(settings, type(self).model_fields))
        self._engine = chosen_engine(
            engine, model=self.model, drafter=self.drafter, overrides=self.overrides
        )
        self.model = self.model or model_name(self._engine)
        self._guide = JsonGuide(self._engine)

    @classmethod
    def class_name(cls) -> str:
        return "MmspecLLM"

    @property
    def metadata(self) -> LLMMetadata:
        context = self._engine.target.max_positions
        return LLMMetadata(
            **({} if context is None else {"context_window": context}),
            num_output=self.max_tokens or DEFAULT_MAX_NEW_TOKENS,
            is_chat_model=True,
            is_function_calling_model=self._engine.inputs is not None
            and self._engine.inputs.shows_tools(self.options.get("template_arguments")),
            model_name=self.model,
        )

    # Messages.

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        (answer,) = ask(self._engine, self._request(messages, kwargs))
        return self._response(answer)

    @llm_chat_callback()
    def stream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> Generator[ChatResponse, None, None]:
        return self._streamed(self._request(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        (answer,) = await ask_async(self._engine, partial(self._request, messages, kwargs))
        return self._response(answer)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> AsyncIterator[ChatResponse]:
        return self._astreamed(partial(self._request, messages, kwargs))

    # One text. A formatted one has been through a template already.

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        (answer,) = ask(self._engine, self._request(prompt, kwargs, raw=formatted))
        return chat_response_to_completion_response(self._response(answer))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> Generator[CompletionResponse, None, None]:
        stream = self._streamed(self._request(prompt, kwargs, raw=formatted))
        return stream_chat_response_to_completion_response(stream)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        make = partial(self._request, prompt, kwargs, raw=formatted)
        (answer,) = await ask_async(self._engine, make)
        return chat_response_to_completion_response(self._response(answer))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> AsyncIterator[CompletionResponse]:
        stream = self._astreamed(partial(self._request, prompt, kwargs, raw=formatted))
        return astream_chat_response_to_completion_response(stream)

    # Tools.

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: object = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
        messages = [*(chat_history or ()), *([] if asked is None else [asked])]
        shown = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        choice = tool_choice or ("required" if tool_required else None)
        return {"messages": messages, "tools": shown, "tool_choice": choice, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """Where calls side by side are not allowed the first one stays."""
        if not allow_parallel_tool_calls:
            calls = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
            blocks = [b for b in response.message.blocks if b not in calls[1:]]
            response.message.blocks = blocks
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=block.tool_kwargs,
            )
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]
        if error_on_no_tool_call and not calls:
            raise InputError(
                f"the model called no tool; it said {response.message.content!r:.80}: say in the "
                "prompt when to call one, or ask with tool_required=True"
            )
        return calls

    # Answers of a form. A stream of one has it whole: a part of it is no value yet.

    def structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        messages = prompt.format_messages(llm=self, **prompt_args)
        answer = self.chat(messages, **_with_form(output_cls, llm_kwargs))
        return _read_form(output_cls, answer)

    async def astructured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Form:
        messages = prompt.format_messages(llm=self, **prompt_args)
        answer = await self.achat(messages, **_with_form(output_cls, llm_kwargs))
        return _read_form(output_cls, answer)

    def stream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Form, None, None]:
        yield self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Form],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncIterator[Form]:
        async def forms() -> AsyncIterator[Form]:
            yield await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return forms()

    def _request(
        self, asked: str | Sequence[ChatMessage], call: Mapping[str, Any], *, raw: bool = False
    ) -> Request:
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        settings |= {"seed": self.seed, "raw": raw or None}
        options = request_options(self.options, settings, call)
        prompt = asked if isinstance(asked, str) else [as_message(message) for message in asked]
        request = component_request(prompt, options, placement=self.placement, guide=self._guide)
        if request.n != 1:
            raise InputError(f"got n={request.n}, expected 1: a response holds one answer")
        return request

    def _streamed(self, request: Request) -> Generator[ChatResponse, None, None]:
        """The answer so far, and what is new of it; the last one has the figures."""
        so_far = _SoFar()
        with AnswerStream(self._engine, request) as stream:
            for part in stream:
                yield so_far.response(part)
        yield self._response(stream.answer, so_far.text)

    async def _astreamed(self, make: Callable[[], Request]) -> AsyncGenerator[ChatResponse, None]:
        so_far = _SoFar()
        async with AsyncAnswerStream(self._engine, make) as stream:
            async for part in stream:
                yield so_far.response(part)
        yield self._response(stream.answer, so_far.text)

    def _response(self, answer: Answer, streamed: str | None = None) -> ChatResponse:
        """`streamed`: its text, where that was told in pieces already."""
        assert self.model is not None, "it is there from the first"
        if streamed is not None:
            answer = replace(answer, text=streamed)
        return ChatResponse(
            message=_as_message(
                answer.text, answer.reasoning, answer.reasoning_tokens, answer.calls
            ),
            delta=None if streamed is None else "",
            raw=metadata(answer, model=self.model),
            additional_kwargs=usage(answer.result),
        )


def _with_form(form: type[BaseModel], call: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**(call or {}), "json_schema": form.model_json_schema()}


def _read_form(form: type[Form], answer: ChatResponse) -> Form:
    text = answer.message.content or ""
    if (why := broken_form(text, answer.raw["finish_reason"])) is not None:
        raise InputError(why)
    return form.model_validate_json(text)


class _SoFar:
    """Of an answer that is streamed."""

    def __init__(self) -> None:
        self.text, self._reasoning = "", ""

    def response(self, part: str | Reasoning) -> ChatResponse:
        """With this part of it; agents look for `thinking_delta`."""
        more: dict[str, Any] = {}
        if isinstance(part, Reasoning):
            self._reasoning += part.text
            delta, more = "", {"thinking_delta": part.text}
        else:
            self.text += part
            delta = part
        message = _as_message(self.text, self._reasoning)
        return ChatResponse(message=message, delta=delta, additional_kwargs=more)


def _as_message(
    text: str, reasoning: str, num_tokens: int = 0, calls: Sequence[ToolCall] = ()
) -> ChatMessage:
    """`num_tokens`: of the reasoning; 0 where it has not ended."""
    blocks: list[TextBlock | ThinkingBlock | ToolCallBlock] = [TextBlock(text=text)]
    if reasoning:
        blocks.insert(0, ThinkingBlock(content=reasoning, num_tokens=num_tokens or None))
    blocks += [
        ToolCallBlock(tool_call_id=c.id, tool_name=c.name, tool_kwargs=dict(c.arguments))
        for c in calls
    ]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
