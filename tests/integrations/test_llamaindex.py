"""`mmspec.integrations.llamaindex`: the engine's own answers, through LlamaIndex."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from integrations.frameworks import (
    ADD,
    CALL,
    ENDLESS,
    LEDGER,
    Ends,
    cancelled,
    png,
    saying,
    thinking,
    watched_streams,
    with_ticks,
    with_tools,
)
from PIL import Image
from pydantic import BaseModel, Field

from mmspec.engine import Engine
from mmspec.errors import InputError

pytest.importorskip("llama_index.core", reason="needs the extra 'llamaindex'")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors.utils import get_selector_from_llm
from llama_index.core.tools import FunctionTool

from mmspec.integrations.llamaindex import MmspecLLM, PassageSynthesizer

ASKED = [ChatMessage(LEDGER)]


@pytest.fixture(scope="module")
def llm(engine: Engine) -> MmspecLLM:
    return MmspecLLM(engine=engine, temperature=0, max_tokens=40)


def test_the_answer_is_the_engines_and_says_how_it_was_made(llm: MmspecLLM, engine: Engine) -> None:
    alone = engine.generate(LEDGER, temperature=0, max_new_tokens=40, reuse=False)
    answer = llm.chat(ASKED, seed=3)
    assert answer.message.role == MessageRole.ASSISTANT
    assert answer.message.content == alone.text == llm.complete(LEDGER).text
    assert answer.raw["finish_reason"] == "stop" and answer.raw["mmspec"]["seed"] == 3
    assert answer.raw["usage"]["completion_tokens"] == alone.stats.new_tokens
    assert answer.raw["mmspec"]["drafters"]["prompt_lookup"]["accepted"] > 0
    assert answer.additional_kwargs["prompt_tokens"] == alone.stats.prompt_tokens


def test_a_formatted_text_is_taken_as_it_is(llm: MmspecLLM, engine: Engine) -> None:
    alone = engine.generate(LEDGER, raw=True, temperature=0, max_new_tokens=40, reuse=False)
    answer = llm.complete(LEDGER, formatted=True)
    assert answer.text == alone.text
    assert answer.raw["usage"]["prompt_tokens"] == alone.stats.prompt_tokens
    assert answer.raw["usage"]["prompt_tokens"] < llm.complete(LEDGER).raw["usage"]["prompt_tokens"]


@pytest.mark.parametrize("form", ["bytes", "path", "data URL"])
def test_an_image_is_read_in_each_form(
    llm: MmspecLLM, engine: Engine, picture: tuple[Image.Image, str], form: str, tmp_path: Path
) -> None:
    image, question = picture
    (tmp_path / "a.png").write_bytes(png(image))
    inline = ImageBlock(image=png(image)).inline_url()
    block = {
        "bytes": ImageBlock(image=png(image)),
        "path": ImageBlock(path=tmp_path / "a.png"),
        "data URL": ImageBlock(url=inline),
    }[form]
    answer = llm.chat([ChatMessage(blocks=[block, TextBlock(text=question)])])
    alone = engine.generate(question, images=image, temperature=0, max_new_tokens=40, reuse=False)
    assert answer.message.content == alone.text
    assert answer.raw["usage"]["prompt_tokens"] == alone.stats.prompt_tokens > 100


def test_what_cannot_be_asked_is_refused(llm: MmspecLLM) -> None:
    with pytest.raises(InputError, match="AudioBlock"):
        llm.chat([ChatMessage(blocks=[AudioBlock(audio=b"RIFF0000WAVE", format="wav")])])
    with pytest.raises(InputError, match="AudioBlock"):  # before the first piece is asked for
        llm.stream_chat([ChatMessage(blocks=[AudioBlock(audio=b"RIFF0000WAVE", format="wav")])])
    with pytest.raises(InputError, match="allow_http"):
        llm.chat([ChatMessage(blocks=[ImageBlock(url="http://localhost/a.png")])])
    with pytest.raises(InputError, match="n=2, expected 1"):
        llm.complete("Hi", n=2)
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        llm.complete("Hi", temprature=1)
    with pytest.raises(InputError, match=r"expected model= .* or engine="):
        MmspecLLM()


def test_a_stream_is_the_answer_in_pieces_with_the_figures_at_its_end(llm: MmspecLLM) -> None:
    whole = llm.chat(ASKED).message.content
    pieces = list(llm.stream_chat(ASKED))
    assert len(pieces) > 5 and pieces[-1].message.content == whole
    assert "".join(piece.delta for piece in pieces) == whole
    assert pieces[-1].raw["mmspec"]["accepted_tokens"] > 0
    texts = list(llm.stream_complete(LEDGER))
    assert "".join(text.delta for text in texts) == texts[-1].text == whole


@pytest.mark.parametrize("way", ["acomplete", "achat"])
def test_an_answer_that_nobody_waits_for_ends(
    way: str, llm: MmspecLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LEDGER if way == "acomplete" else [ChatMessage(role="user", content=LEDGER)]
    ends = asyncio.run(cancelled(engine, monkeypatch, lambda: getattr(llm, way)(asked, **ENDLESS)))
    assert ends == ["closed"]


def test_async_answers_are_the_same_and_the_event_loop_goes_on(llm: MmspecLLM) -> None:
    async def ask() -> list[str]:
        return [
            (await llm.achat(ASKED)).message.content,
            (await llm.acomplete(LEDGER)).text,
            "".join([piece.delta async for piece in await llm.astream_chat(ASKED)]),
            "".join([piece.delta async for piece in await llm.astream_complete(LEDGER)]),
        ]

    answers, ticks = asyncio.run(with_ticks(ask()))
    assert set(answers) == {llm.complete(LEDGER).text} and ticks > 20


def test_a_stream_that_is_left_ends_the_decoding(
    llm: MmspecLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = watched_streams(engine, monkeypatch)
    pieces = llm.stream_chat(ASKED)
    next(pieces)
    pieces.close()
    assert streams[0].result.finish_reason == "closed"


@pytest.mark.parametrize("way", ["astream_complete", "astream_chat"])
def test_an_async_stream_that_is_left_ends_the_decoding(
    way: str, llm: MmspecLLM, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LEDGER if way == "astream_complete" else ASKED
    ends = Ends(engine, monkeypatch.setattr)

    async def leave() -> None:
        async for _ in await getattr(llm, way)(asked, **ENDLESS):
            break

    asyncio.run(leave())
    assert ends.reasons == ["closed"]


def test_tools_are_shown_and_their_calls_are_read(llm: MmspecLLM, engine: Engine) -> None:
    asked = [ChatMessage("1 + 2?")]
    answer = llm.chat(asked, tools=[ADD], **with_tools(engine, CALL))
    (call,) = [block for block in answer.message.blocks if isinstance(block, ToolCallBlock)]
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 1, "b": 2})
    assert answer.raw["finish_reason"] == "tool_calls" and not answer.message.content
    *_, last = llm.stream_chat(asked, tools=[ADD], **with_tools(engine, CALL))
    assert any(isinstance(block, ToolCallBlock) for block in last.message.blocks)
    told = ChatMessage("3", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "1"})
    final = llm.chat([*asked, answer.message, told], tools=[ADD], **with_tools(engine, "It is 3."))
    assert final.message.content == "It is 3."


def test_reasoning_is_a_block_and_is_shown_again(llm: MmspecLLM, engine: Engine) -> None:
    asked = [ChatMessage("1 + 2?")]
    options = {**thinking(engine, f"<think>\nHm.\n</think>\n\nWell. {CALL}"), "tools": [ADD]}
    *deltas, last = llm.stream_chat(asked, **options)
    fresh = (one.additional_kwargs.get("thinking_delta", "") for one in deltas)
    assert "".join(fresh) == "Hm." and "".join(one.delta for one in deltas) == "Well. "
    for answer in (llm.chat(asked, **options), last):
        thought, text, call = answer.message.blocks
        assert (thought.content, thought.num_tokens) == ("Hm.", 3)
        assert text.text.strip() == "Well." and call.tool_name == "add"
    request = llm._request([*asked, last.message, ChatMessage("So?")], options)
    shown = engine.prepare(request).prompt.text  # type: ignore[union-attr]
    assert "<|assistant|><think>Hm.</think>Well." in shown


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


TOOL = FunctionTool.from_defaults(add)


@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_calls_its_tools(engine: Engine, streams: bool) -> None:
    """Each answer is forced by what was said before: the call, then the sum."""
    calls, told = with_tools(engine, CALL), saying(engine, "It is 3.")
    assert engine.tokenizer is not None
    decode, name = engine.tokenizer.decode, "prefix_allowed_tokens_fn"

    def allowed(index: int, ids: Any) -> Any:
        return (told if "<|tool|>" in decode(ids) else calls)[name](index, ids)

    options = {**calls, name: allowed}
    llm = MmspecLLM(engine=engine, temperature=0, **options)
    assert llm.metadata.is_function_calling_model
    agent = FunctionAgent(tools=[TOOL], llm=llm, streaming=streams)

    async def ask() -> Any:
        return await agent.run("1 + 2?")

    answer = asyncio.run(ask())
    (call,) = answer.tool_calls
    assert str(answer) == "It is 3."
    assert (call.tool_kwargs, call.tool_output.raw_output) == ({"a": 1, "b": 2}, 3)


def test_calls_are_predicted_and_made(engine: Engine) -> None:
    llm = MmspecLLM(engine=engine, temperature=0, **with_tools(engine, CALL + CALL))
    assert llm.predict_and_call([TOOL], "1 + 2?").response == "3"
    both = asyncio.run(llm.apredict_and_call([TOOL], "?", allow_parallel_tool_calls=True))
    assert both.response == "3\n\n3"
    mute = MmspecLLM(engine=engine, temperature=0, **with_tools(engine, "No."))
    with pytest.raises(InputError, match=r"it said 'No\.'.*tool_required"):
        mute.predict_and_call([TOOL], "1 + 2?")


def test_a_call_that_is_required_follows_the_tool(engine: Engine) -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'guided'")
    shown = with_tools(engine, "")["template_arguments"]
    llm = MmspecLLM(engine=engine, temperature=0, max_tokens=400, template_arguments=shown)
    answer = llm.chat_with_tools([TOOL], "1 + 2?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "add" and call.tool_kwargs.keys() == {"a", "b"}
    *_, last = llm.stream_chat_with_tools([TOOL], "1 + 2?", tool_choice="add")
    (same,) = llm.get_tool_calls_from_response(last)
    assert same.tool_kwargs == call.tool_kwargs
    chosen = get_selector_from_llm(llm).select(["A list.", "A table."], "Which?")
    assert len(chosen.selections) == 1


def test_a_model_whose_template_knows_no_tools_does_not_say_that_it_calls_them(
    llm: MmspecLLM,
) -> None:
    assert not llm.metadata.is_function_calling_model


def test_its_metadata_and_settings_are_told(llm: MmspecLLM, engine: Engine) -> None:
    assert llm.metadata.context_window == engine.target.max_positions
    assert (llm.metadata.num_output, llm.metadata.is_chat_model) == (40, True)
    written: dict[str, Any] = llm.to_dict()
    assert written["class_name"] == "MmspecLLM" and written["max_tokens"] == 40
    assert "engine" not in written


SHIPS = "The ship of Ulriko left Tandor with 80 barrels of oil."


class Fixed(BaseRetriever):
    """Finds the same nodes for every query."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = [TextNode(text=SHIPS), TextNode(text="Owls <image> sleep by day.")]
        return [NodeWithScore(node=node, score=1.0) for node in found]


@pytest.mark.parametrize("way", ["query", "aquery", "stream", "astream"])
def test_a_query_engine_hands_its_nodes_to_the_prompt_and_the_drafter(
    engine: Engine, way: str
) -> None:
    llm = MmspecLLM(engine=engine, temperature=0, options=saying(engine, SHIPS))
    prompts: list[Any] = []
    asked = llm._request

    def watched(*args: Any, **kwargs: Any) -> Any:
        prompts.append(asked(*args, **kwargs))
        return prompts[-1]

    object.__setattr__(llm, "_request", watched)
    synthesizer = PassageSynthesizer(llm=llm, streaming="stream" in way)
    query_engine = RetrieverQueryEngine(Fixed(), response_synthesizer=synthesizer)

    async def ask() -> tuple[Any, str]:
        response = await query_engine.aquery("Who?")
        if way == "aquery":
            return response, str(response)
        return response, "".join([piece async for piece in response.response_gen])

    if way.startswith("a"):
        response, text = asyncio.run(ask())
    else:
        response = query_engine.query("Who?")
        text = str(response) if way == "query" else "".join(response.response_gen)
    assert text == SHIPS
    assert len(response.source_nodes) == 2
    (request,) = prompts
    assert [passage.text for passage in request.passages] == [
        SHIPS,
        "Owls <image> sleep by day.",
    ]
    if "stream" not in way:
        bare = llm.chat([ChatMessage("Who?")])
        told = response.metadata
        assert told["mmspec"]["steps"] < bare.raw["mmspec"]["steps"] / 2
        grew = told["usage"]["prompt_tokens"] - bare.raw["usage"]["prompt_tokens"]
        assert grew > len(SHIPS)


def test_images_of_nodes_go_with_the_question(
    llm: MmspecLLM, engine: Engine, picture: tuple[Image.Image, str]
) -> None:
    image, question = picture
    blocks = [ImageBlock(image=png(image)), TextBlock(text="A page.")]
    synthesizer = PassageSynthesizer(llm=llm, multimodal=True)
    answer = synthesizer.get_response_from_messages(question, [ChatMessage(blocks=blocks)])
    alone = engine.generate(
        question, images=image, passages=["A page."], temperature=0, max_new_tokens=40, reuse=False
    )
    assert answer == alone.text
    assert answer.raw["usage"]["prompt_tokens"] == alone.stats.prompt_tokens


def test_the_synthesizer_has_no_prompts_of_its_own(llm: MmspecLLM) -> None:
    synthesizer = PassageSynthesizer(llm=llm)
    assert synthesizer.get_prompts() == {}
    with pytest.raises(InputError, match="passage_template"):
        synthesizer.update_prompts({"text_qa_template": "x"})


def test_a_request_s_own_names_are_settings_and_a_misspelt_one_is_named(engine: Engine) -> None:
    llm = MmspecLLM(engine=engine, temperature=0, max_new_tokens=3, ignore_eos=True)
    assert llm.complete("a").raw["usage"]["completion_tokens"] == 3
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        MmspecLLM(engine=engine, temprature=1)


class Entry(BaseModel):
    name: Literal["ledger", "invoice"]
    pages: int = Field(ge=0, le=9)


def test_an_answer_of_a_form_follows_it_by_a_grammar(engine: Engine) -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'guided'")
    llm = MmspecLLM(engine=engine, temperature=0, max_tokens=200)
    template = PromptTemplate("Say {what}.")
    structured = llm.as_structured_llm(Entry)

    async def later() -> list[Any]:
        stream = await llm.astream_structured_predict(Entry, template, what="it")
        return [
            await llm.astructured_predict(Entry, template, what="it"),
            *[x async for x in stream],
        ]

    forms = [
        llm.structured_predict(Entry, template, what="it"),
        *llm.stream_structured_predict(Entry, template, what="it"),
        *asyncio.run(later()),
    ]
    assert all(isinstance(form, Entry) and form == forms[0] for form in forms) and len(forms) == 4
    assert isinstance(structured.chat(ASKED).raw, Entry)
    assert isinstance(structured.complete("Say it.").raw, Entry)
    with pytest.raises(InputError, match=r"cut off.*more max_tokens"):
        llm.structured_predict(Entry, template, {"max_tokens": 3}, what="it")
    with pytest.raises(InputError, match="max_tokns"):
        llm.structured_predict(Entry, template, {"max_tokns": 3}, what="it")
