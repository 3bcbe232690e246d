"""What the tests of all frameworks share."""

import asyncio
import base64
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from PIL import Image
from torch import Tensor

from mmspec.answers import Stream
from mmspec.engine import Engine
from mmspec.requests import Result

T = TypeVar("T")
LEDGER = (
    "Entry 12345: Anna bought 3 pears.\nEntry 54321: Bob sold 4 plums to Carl.\nQuote entry 54321."
)
# A chat template that writes tools, tool calls and their results.
TOOL_TEMPLATE = (
    "<s>{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
    "{% for call in message.tool_calls or [] %}"
    "[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The same of a model that thinks, and that is shown what it thought.
THINKING_TEMPLATE = TOOL_TEMPLATE.replace(
    "{% for part",
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{% for part",
)  # fmt: skip
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


def saying(engine: Engine, text: str) -> dict[str, Any]:
    """Options that leave the model no other answer than `text`, in each row of a batch."""
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    script: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    script.append(tokenizer.eos_token_id)
    begin = tokenizer.convert_tokens_to_ids("<|assistant|>")

    def allowed(index: int, ids: Tensor) -> list[int]:
        said = len(ids) - 1 - int((ids == begin).nonzero()[-1])
        return [script[min(said, len(script) - 1)]]

    return {"prefix_allowed_tokens_fn": allowed, "max_tokens": len(script) + 1}


def with_tools(engine: Engine, text: str) -> dict[str, Any]:
    """As `saying`, with a chat template that knows tools."""
    return {**saying(engine, text), "template_arguments": {"chat_template": TOOL_TEMPLATE}}


def thinking(engine: Engine, text: str) -> dict[str, Any]:
    """As `saying`, with the template of a model that thinks."""
    return {**saying(engine, text), "template_arguments": {"chat_template": THINKING_TEMPLATE}}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def png_base64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def watched_streams(engine: Engine, patch: pytest.MonkeyPatch) -> list[Stream]:
    """The streams that the engine is going to make."""
    streams, make = list[Stream](), engine.stream

    def stream(request: Any) -> Stream:
        streams.append(make(request))
        return streams[-1]

    patch.setattr(engine, "stream", stream)
    return streams


class Calls:
    """How many prompts each decode loop of the engine had."""

    def __init__(self, engine: Engine, patch: Callable[[object, str, object], None]) -> None:
        self.sizes: list[int] = []
        each = engine._each

        def counted(prompts: Any, shares: Any, **options: Any) -> Any:
            self.sizes.append(0)
            number = len(self.sizes) - 1

            def taken() -> Iterator[Any]:
                for prompt in prompts:
                    self.sizes[number] += prompt is not None
                    yield prompt

            return each(taken(), shares, **options)

        patch(engine, "_each", counted)


ENDLESS: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


class Ends:
    """What became of the requests that the engine's decode loops have had since."""

    def __init__(self, engine: Engine, patch: Callable[[object, str, object], None]) -> None:
        self.begun, self._ended = threading.Event(), threading.Event()
        self._answers = list[Result]()
        each = engine._each

        def watched(prompts: Any, shares: Any, *, tells_steps: bool) -> Any:
            for step in each(prompts, shares, tells_steps=True):
                self.begun.set()
                if step.result is not None:
                    self._answers.append(step.result)
                if tells_steps or step.result is not None:
                    yield step
            self._ended.set()

        patch(engine, "_each", watched)

    @property
    def reasons(self) -> list[str]:
        """Once a loop has ended."""
        assert self._ended.wait(60)
        return [answer.finish_reason for answer in self._answers]


async def cancelled(
    engine: Engine, patch: pytest.MonkeyPatch, ask: Callable[[], Awaitable[object]]
) -> list[str]:
    """How the engine's decode loop ended what was asked by a caller who was cancelled."""
    ends = Ends(engine, patch.setattr)
    task = asyncio.ensure_future(ask())
    await asyncio.to_thread(ends.begun.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return await asyncio.to_thread(lambda: ends.reasons)


async def with_ticks(work: Awaitable[T]) -> tuple[T, int]:
    """What comes of `work`, and how often the event loop did something else meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    try:
        return await work, ticks
    finally:
        ticking.cancel()
