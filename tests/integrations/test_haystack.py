"""`mmspec.integrations.haystack`: the engine's own answers, through Haystack."""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest
from integrations.frameworks import (
    CALL,
    ENDLESS,
    LEDGER,
    Ends,
    cancelled,
    png_base64,
    saying,
    thinking,
    watched_streams,
    with_tools,
)
from PIL import Image

from mmspec.engine import Engine
from mmspec.errors import InputError

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when it is imported
pytest.importorskip("haystack", reason="needs the extra 'haystack'")

from haystack import Document, Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.core.errors import DeserializationError
from haystack.dataclasses import ChatMessage, ImageContent, StreamingChunk
from haystack.tools import Tool

from mmspec.integrations.haystack import MmspecChatGenerator

ASKED = [ChatMessage.from_user(LEDGER)]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def generator(engine: Engine) -> MmspecChatGenerator:
    return MmspecChatGenerator(engine=engine, generation_kwargs=GREEDY)


def reply(made: dict[str, Any]) -> ChatMessage:
    (one,) = made["replies"]
    return one


def test_the_answer_is_the_engines_and_says_how_it_was_made(
    generator: MmspecChatGenerator, engine: Engine
) -> None:
    alone = engine.generate(LEDGER, temperature=0, max_new_tokens=40, reuse=False)
    answer = reply(generator.run(ASKED, generation_kwargs={"seed": 3}))
    assert answer.text == alone.text == reply(generator.run(LEDGER)).text
    assert answer.meta["finish_reason"] == "stop" and answer.meta["mmspec"]["seed"] == 3
    assert answer.meta["usage"]["completion_tokens"] == alone.stats.new_tokens
    assert answer.meta["mmspec"]["drafters"]["prompt_lookup"]["accepted"] > 0


def test_an_image_is_read(
    generator: MmspecChatGenerator, engine: Engine, picture: tuple[Image.Image, str]
) -> None:
    image, question = picture
    content = ImageContent(png_base64(image), mime_type="image/png")
    answer = reply(generator.run([ChatMessage.from_user(content_parts=[content, question])]))
    alone = engine.generate(question, images=image, temperature=0, max_new_tokens=40, reuse=False)
    assert answer.text == alone.text
    assert answer.meta["usage"]["prompt_tokens"] == alone.stats.prompt_tokens > 100


def test_what_cannot_be_asked_is_refused(generator: MmspecChatGenerator) -> None:
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        generator.run(ASKED, generation_kwargs={"temprature": 1})
    with pytest.raises(InputError, match="expected a folder, a name, or engine="):
        MmspecChatGenerator()


def test_an_answer_that_nobody_waits_for_ends(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = MmspecChatGenerator(engine=engine)
    ends = asyncio.run(
        cancelled(
            engine,
            monkeypatch,
            lambda: generator.run_async(ASKED, generation_kwargs=ENDLESS),
        )
    )
    assert ends == ["closed"]


def test_chunks_are_the_answer_in_pieces_in_sync_and_async_pipelines(
    generator: MmspecChatGenerator,
) -> None:
    whole = reply(generator.run(ASKED)).text
    chunks: list[StreamingChunk] = []
    answer = reply(generator.run(ASKED, streaming_callback=chunks.append))
    assert answer.text == whole == "".join(chunk.content for chunk in chunks)
    assert [chunk.start for chunk in chunks].count(True) == 1 and chunks[0].start
    assert chunks[-1].finish_reason == "stop" and chunks[-1].meta["usage"] == answer.meta["usage"]
    pieces: list[str] = []

    async def collect(chunk: StreamingChunk) -> None:
        await asyncio.sleep(0)
        pieces.append(chunk.content)

    made = asyncio.run(generator.run_async(ASKED, streaming_callback=collect))
    assert reply(made).text == whole == "".join(pieces)
    assert reply(asyncio.run(generator.run_async(ASKED))).text == whole


def test_a_callback_that_fails_ends_the_decoding(
    generator: MmspecChatGenerator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, ends = watched_streams(engine, monkeypatch), Ends(engine, monkeypatch.setattr)

    def fail(chunk: StreamingChunk) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        generator.run(ASKED, streaming_callback=fail)
    with pytest.raises(RuntimeError, match="enough"):
        asyncio.run(generator.run_async(ASKED, streaming_callback=fail, generation_kwargs=ENDLESS))
    assert [stream.result.finish_reason for stream in streams] == ends.reasons == ["closed"]


def test_a_pipeline_is_written_and_read_by_the_models_name() -> None:
    made = MmspecChatGenerator(
        "tiny-vlm", overrides={"decode.controller": "fixed"}, generation_kwargs=GREEDY
    )
    pipeline = Pipeline()
    pipeline.add_component("generator", made)
    text = pipeline.dumps()
    with pytest.raises(DeserializationError, match="allowed_modules"):
        Pipeline.loads(text)
    read = Pipeline.loads(text, allowed_modules=["mmspec.*"])
    assert read.dumps() == text
    answers = [
        reply(one.run({"generator": {"messages": ASKED}})["generator"]) for one in (pipeline, read)
    ]
    assert answers[0].text == answers[1].text != ""
    assert answers[0].meta["model"] == "tiny-vlm"


def test_one_with_an_engine_cannot_be_written(generator: MmspecChatGenerator) -> None:
    with pytest.raises(InputError, match="make it with model="):
        generator.to_dict()


def test_threads_load_the_model_once(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    loads: list[object] = []

    def load(*args: object, **settings: object) -> Engine:
        loads.append(settings)
        return engine

    monkeypatch.setattr("mmspec.integrations.haystack.generator.chosen_engine", load)
    one = MmspecChatGenerator("somewhere", generation_kwargs=GREEDY)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: one.warm_up(), range(8)))
    assert len(loads) == 1


ADD = Tool(
    name="add",
    description="Adds.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    function=lambda a, b: a + b,
)


@pytest.mark.parametrize("streams", [False, True])
def test_a_call_that_has_to_be_made_follows_the_tool(
    generator: MmspecChatGenerator, engine: Engine, streams: bool
) -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'guided'")
    shown = with_tools(engine, "")["template_arguments"]
    options = {"template_arguments": shown, "max_tokens": 400, "temperature": 0}
    chunks: list[StreamingChunk] = []
    made = reply(
        generator.run(
            [ChatMessage.from_user("1 + 2?")],
            tools=[ADD],
            generation_kwargs={**options, "tool_choice": "required"},
            streaming_callback=chunks.append if streams else None,
        )
    )
    assert made.tool_call is not None and made.tool_call.tool_name == "add"
    assert isinstance(made.tool_call.arguments["a"], int)
    assert not made.text and not "".join(chunk.content for chunk in chunks)


def test_tools_are_shown_and_their_calls_are_read(
    generator: MmspecChatGenerator, engine: Engine
) -> None:
    asked = ChatMessage.from_user("1 + 2?")
    options = with_tools(engine, f"Well. {CALL}")
    answer = reply(generator.run([asked], tools=[ADD], generation_kwargs=options))
    assert answer.text == "Well." and answer.meta["finish_reason"] == "tool_calls"
    assert answer.tool_call is not None
    assert (answer.tool_call.tool_name, answer.tool_call.arguments) == ("add", {"a": 1, "b": 2})
    chunks: list[StreamingChunk] = []
    options = with_tools(engine, CALL)
    generator.run([asked], tools=[ADD], generation_kwargs=options, streaming_callback=chunks.append)
    (delta,) = [call for chunk in chunks for call in chunk.tool_calls or ()]
    assert delta.tool_name == "add" and "tool_call" not in "".join(c.content for c in chunks)
    told = ChatMessage.from_tool("3", origin=answer.tool_call)
    options = with_tools(engine, "It is 3.")
    final = generator.run([asked, answer, told], tools=[ADD], generation_kwargs=options)
    assert reply(final).text == "It is 3."


def test_reasoning_is_a_content_of_its_own_and_is_shown_again(
    generator: MmspecChatGenerator, engine: Engine
) -> None:
    asked = ChatMessage.from_user("1 + 2?")
    options = thinking(engine, "<think>\nHm.\n</think>\n\nWell.")
    for streams in (False, True):
        chunks: list[StreamingChunk] = []
        callback = chunks.append if streams else None
        made = generator.run([asked], generation_kwargs=options, streaming_callback=callback)
        answer = reply(made)
        assert answer.reasoning is not None and answer.reasoning.reasoning_text == "Hm."
        assert answer.text == "Well."
        counted = answer.meta["usage"]["completion_tokens_details"]
        assert counted == {"reasoning_tokens": 3}
        if streams:
            thought = [chunk.reasoning.reasoning_text for chunk in chunks if chunk.reasoning]
            assert "".join(thought) == "Hm." and "".join(c.content for c in chunks) == "Well."
    request = generator._request([asked, answer, ChatMessage.from_user("So?")], None, options, None)
    shown = engine.prepare(request).prompt.text  # type: ignore[union-attr]
    assert "<|assistant|><think>Hm.</think>Well." in shown


def test_several_samples_are_several_replies(
    generator: MmspecChatGenerator, engine: Engine
) -> None:
    wish = {"n": 3, "seed": 4, "temperature": 1.0}
    replies = generator.run("Story", generation_kwargs=wish)["replies"]
    assert len({one.text for one in replies}) == 3
    assert [one.meta["index"] for one in replies] == [0, 1, 2]
    alone = engine.generate("Story", max_new_tokens=40, **wish).samples
    counted = [one.meta["usage"]["completion_tokens"] for one in replies]
    assert counted == [one.stats.new_tokens for one in alone]


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
def test_an_answer_follows_a_json_schema(generator: MmspecChatGenerator) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Anna", "Bob"]}}}
    schema |= {"required": ["name"]}
    asked = {"json_schema": schema, "max_tokens": 90}
    answer = reply(generator.run(ASKED, generation_kwargs=asked))
    assert json.loads(answer.text or "") in ({"name": "Anna"}, {"name": "Bob"})
    assert answer.text == reply(asyncio.run(generator.run_async(ASKED, None, None, asked))).text


SHIPS = "The ship of Ulriko left Tandor with 80 barrels of oil."
FOUND = [
    Document(content=SHIPS, meta={"file_path": "ships.txt"}),
    Document(content="Owls <image> sleep by day."),
    Document(content=None),  # a picture's
]


@component
class Fixed:
    """Finds the same documents for every query."""

    @component.output_types(documents=list[Document])
    def run(self, query: str) -> dict[str, list[Document]]:
        return {"documents": FOUND}


@pytest.mark.parametrize("builder_writes_them", [False, True])
@pytest.mark.parametrize("way", ["run", "run_async"])
def test_documents_reach_the_drafter_and_the_prompt_once(
    engine: Engine, builder_writes_them: bool, way: str
) -> None:
    options = {"temperature": 0, **saying(engine, SHIPS)}
    made = MmspecChatGenerator(engine=engine, generation_kwargs=options)
    text = "{% for d in documents %}{{ d.content }}\n{% endfor %}Who?"
    pipeline = Pipeline()
    pipeline.add_component("retriever", Fixed())
    template = [ChatMessage.from_user(text if builder_writes_them else "Who?")]
    pipeline.add_component("prompt", ChatPromptBuilder(template))
    pipeline.add_component("generator", made)
    pipeline.connect("retriever.documents", "generator.documents")
    if builder_writes_them:
        pipeline.connect("retriever.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "generator.messages")
    given = {"retriever": {"query": "Who?"}}
    ran = asyncio.run(pipeline.run_async(given)) if way == "run_async" else pipeline.run(given)
    answer, bare = reply(ran["generator"]), reply(made.run("Who?"))
    assert answer.text == bare.text == SHIPS
    assert answer.meta["mmspec"]["steps"] < bare.meta["mmspec"]["steps"] / 2
    grew = answer.meta["usage"]["prompt_tokens"] - bare.meta["usage"]["prompt_tokens"]
    once = len(SHIPS) + len("Owls <image> sleep by day.")  # bytes are tokens here
    assert once <= grew < 1.8 * once
