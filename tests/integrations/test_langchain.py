"""`mmspec.integrations.langchain`: the engine's own answers, through LangChain."""

import asyncio
import operator
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import reduce
from importlib.util import find_spec
from typing import Any, Literal

import pytest
from integrations.frameworks import (
    ADD,
    CALL,
    ENDLESS,
    LEDGER,
    Calls,
    Ends,
    cancelled,
    png_base64,
    saying,
    thinking,
    watched_streams,
    with_ticks,
    with_tools,
)
from PIL import Image

from mmspec.engine import Engine
from mmspec.errors import InputError

pytest.importorskip("langchain_core", reason="needs the extra 'langchain'")

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers._streaming import _StreamingCallbackHandler
from pydantic import BaseModel, Field

from mmspec.integrations.langchain import ChatMmspec

PROMPTS = [LEDGER, LEDGER.replace("Bob", "Eve"), "Hello there"]


@pytest.fixture(scope="module")
def llm(engine: Engine) -> ChatMmspec:
    return ChatMmspec(engine=engine, temperature=0, max_tokens=40)


def test_the_answer_is_the_engines_and_says_how_it_was_made(
    llm: ChatMmspec, engine: Engine
) -> None:
    answer = llm.invoke(LEDGER, seed=3)
    alone = engine.generate(LEDGER, temperature=0, max_new_tokens=40, reuse=False)
    assert answer.content == alone.text
    metadata = answer.response_metadata
    assert metadata["finish_reason"] == "stop" and metadata["mmspec"]["seed"] == 3
    drafted = metadata["mmspec"]["drafters"]["prompt_lookup"]
    assert 0 < drafted["accepted"] == metadata["mmspec"]["accepted_tokens"]
    assert drafted["share"] == pytest.approx(drafted["accepted"] / alone.stats.new_tokens)
    assert metadata["mmspec"]["tokens_per_step"] > 1.5
    assert answer.usage_metadata["input_tokens"] == alone.stats.prompt_tokens
    assert answer.usage_metadata["output_tokens"] == alone.stats.new_tokens


def test_a_conversation_reaches_the_template_with_its_roles(
    llm: ChatMmspec, engine: Engine
) -> None:
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Hi"),
        AIMessage("Hello"),
        HumanMessage([{"type": "text", "text": "Quote"}, "this"]),
    ]
    result = llm._request(messages, None, {})
    seen = [(m["role"], [p["text"] for p in m["content"]]) for m in result.prompt]
    assert seen == [
        ("system", ["Be brief."]),
        ("user", ["Hi"]),
        ("assistant", ["Hello"]),
        ("user", ["Quote", "this"]),
    ]


@pytest.mark.parametrize("form", ["base64", "image_url", "old base64"])
def test_an_image_is_read_in_each_of_langchains_forms(
    llm: ChatMmspec, engine: Engine, picture: tuple[Image.Image, str], form: str
) -> None:
    image, question = picture
    data = png_base64(image)
    block = {
        "base64": {"type": "image", "base64": data, "mime_type": "image/png"},
        "image_url": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        "old base64": {
            "type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"
        },
    }[form]  # fmt: skip
    answer = llm.invoke([HumanMessage([block, {"type": "text", "text": question}])])
    alone = engine.generate(question, images=image, temperature=0, max_new_tokens=40, reuse=False)
    assert answer.content == alone.text
    assert answer.usage_metadata["input_tokens"] == alone.stats.prompt_tokens > 100


def test_what_no_model_reads_is_refused(llm: ChatMmspec) -> None:
    with pytest.raises(InputError, match="expected text, or a medium"):
        llm.invoke([HumanMessage([{"type": "file", "base64": "AAAA", "mime_type": "x/y"}])])
    with pytest.raises(InputError, match="did you mean 'temperature'"):
        llm.invoke("Hi", temprature=1)
    with pytest.raises(InputError, match="say the same"):
        llm.invoke("Hi", max_tokens=3, max_new_tokens=4)
    with pytest.raises(InputError, match=r"expected model= .* or engine="):
        ChatMmspec()
    with pytest.raises(InputError, match=r"in mmspec\.load"):
        ChatMmspec(engine=llm.engine, drafter="none")


def test_settings_hold_and_a_calls_own_override_them(engine: Engine) -> None:
    llm = ChatMmspec(
        engine=engine, temperature=0.9, seed=5, max_tokens=12, stop=["zz"], options={"top_k": 7}
    )
    request = llm._request([HumanMessage("x")], None, {})
    assert (request.temperature, request.seed, request.max_new_tokens) == (0.9, 5, 12)
    assert (request.stop, request.top_k) == (["zz"], 7)
    request = llm._request([HumanMessage("x")], ["q"], {"seed": 6, "max_tokens": 3, "top_k": None})
    assert (request.stop, request.seed, request.max_new_tokens, request.top_k) == (["q"], 6, 3, 7)
    assert llm.invoke("Story", stop=["e"]).content.find("e") < 0
    assert llm.invoke("Story").content == llm.invoke("Story").content != ""


def test_a_stream_is_the_answer_in_pieces_with_the_figures_at_its_end(llm: ChatMmspec) -> None:
    whole = llm.invoke(LEDGER)
    chunks = list(llm.stream(LEDGER))
    assert len(chunks) > 5
    assert all(chunk.usage_metadata is None for chunk in chunks[:-1])
    joined = chunks[0]
    for chunk in chunks[1:]:
        joined += chunk
    assert joined.content == whole.content
    assert joined.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert joined.response_metadata["mmspec"]["accepted_tokens"] > 0


def test_a_stream_that_is_left_ends_the_decoding(
    llm: ChatMmspec, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, ends = watched_streams(engine, monkeypatch), Ends(engine, monkeypatch.setattr)
    chunks = llm.stream(LEDGER)
    next(chunks)
    chunks.close()
    assert streams[0].result.finish_reason == "closed"

    async def leave() -> None:
        async for _ in llm.astream(LEDGER, **ENDLESS):
            break

    asyncio.run(leave())
    assert ends.reasons == ["closed"]


@pytest.mark.parametrize("way", ["ainvoke", "abatch"])
def test_an_answer_that_nobody_waits_for_ends(
    way: str, llm: ChatMmspec, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = LEDGER if way == "ainvoke" else [LEDGER, LEDGER]
    ends = asyncio.run(cancelled(engine, monkeypatch, lambda: getattr(llm, way)(asked, **ENDLESS)))
    assert set(ends) == {"closed"}


class Streams(BaseCallbackHandler, _StreamingCallbackHandler[Any]):
    """LangChain streams the answers of a model that has one."""

    def tap_output_aiter(self, run_id: Any, output: Any) -> Any:
        return output

    def tap_output_iter(self, run_id: Any, output: Any) -> Any:
        return output


@pytest.mark.parametrize("way", ["batch", "streaming batch", "generate"])
def test_ctrl_c_ends_what_is_decoded(
    way: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = InMemoryCache()
    llm = ChatMmspec(engine=engine, temperature=0, cache=cache, options=ENDLESS)
    ends, main = Ends(engine, monkeypatch.setattr), threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert ends.begun.wait(60)
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(interrupt)
        if way.endswith("batch"):
            handlers: list[Any] = [Streams()] if way.startswith("streaming") else []
            llm.batch(PROMPTS * 10, {"callbacks": handlers})
        else:
            llm.generate([[HumanMessage(prompt)] for prompt in PROMPTS * 10])
    assert set(ends.reasons) == {"closed"}
    assert not cache._cache


def test_the_event_loop_goes_on_meanwhile(llm: ChatMmspec) -> None:
    async def both() -> list[str]:
        pieces = [str(chunk.content) async for chunk in llm.astream(LEDGER)]
        return ["".join(pieces), (await llm.ainvoke(LEDGER)).content]

    answers, ticks = asyncio.run(with_ticks(both()))
    assert set(answers) == {llm.invoke(LEDGER).content} and ticks > 20


def test_streams_are_decoded_together(
    llm: ChatMmspec, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [llm.invoke(prompt).content for prompt in PROMPTS]
    calls = Calls(engine, monkeypatch.setattr)

    async def text(prompt: str) -> str:
        return "".join([str(chunk.content) async for chunk in llm.astream(prompt)])

    async def ask() -> list[str]:
        return await asyncio.gather(*map(text, PROMPTS * 3))

    assert asyncio.run(ask()) == alone * 3
    assert len(calls.sizes) < 4, calls.sizes


@pytest.mark.parametrize("way", ["batch", "abatch", "generate", "agenerate", "chain"])
def test_several_prompts_are_one_ragged_batch(
    llm: ChatMmspec, engine: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    alone = [llm.invoke(prompt).content for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    calls = Calls(engine, monkeypatch.setattr)
    if way == "batch":
        answers = [m.content for m in llm.batch(PROMPTS, stop=["never"])]
    elif way == "abatch":
        answers = [m.content for m in asyncio.run(llm.abatch(PROMPTS))]
    elif way == "chain":
        chain = RunnableLambda(lambda text: [HumanMessage(text)]) | llm.bind(seed=1)
        answers = [m.content for m in chain.batch(PROMPTS)]
    else:
        messages = [[HumanMessage(prompt)] for prompt in PROMPTS]
        made = llm.generate(messages) if way == "generate" else asyncio.run(llm.agenerate(messages))
        answers = [generations[0].text for generations in made.generations]
        assert made.llm_output["token_usage"]["completion_tokens"] > 40
    assert answers == alone
    assert sum(calls.sizes) == len(PROMPTS)
    assert len(calls.sizes) < len(PROMPTS)


def test_a_prompt_that_fails_leaves_the_rest_of_the_batch(llm: ChatMmspec) -> None:
    long = "x" * 40_000  # beyond the context
    unreadable = [HumanMessage([{"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}])]
    good, bad, worse = llm.batch([LEDGER, long, unreadable], return_exceptions=True)
    assert good.content == llm.invoke(LEDGER).content
    assert isinstance(bad, InputError) and "context" in str(bad)
    assert isinstance(worse, InputError)
    with pytest.raises(InputError, match="context"):
        llm.batch([LEDGER, long])
    assert [m.content for m in llm.batch([LEDGER, LEDGER])] == [good.content] * 2


def test_tools_are_shown_and_their_calls_are_read(llm: ChatMmspec, engine: Engine) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    asked = [HumanMessage("1 + 2?")]
    bound = llm.bind_tools([add], **with_tools(engine, f"Well. {CALL}"))
    answer = bound.invoke(asked)
    assert answer.content == "Well."
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    streamed = None
    for chunk in llm.bind_tools([add], **with_tools(engine, f"Well. {CALL}")).stream(asked):
        assert "tool_call" not in str(chunk.content)
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None and streamed.content == "Well. "
    assert streamed.tool_calls[0]["args"] == {"a": 1, "b": 2}
    told = ToolMessage("3", tool_call_id=call["id"], name="add")
    request = llm._request([*asked, answer, told], None, with_tools(engine, "3"))
    text = engine.inputs.encode(  # type: ignore[union-attr]
        request.prompt, tools=[ADD], template_arguments=request.template_arguments
    ).text
    assert '[add {"a": 1, "b": 2}]' in text and "<|tool|>3" in text and text.startswith("<s>add")


def test_reasoning_is_a_block_and_is_shown_again(llm: ChatMmspec, engine: Engine) -> None:
    options = thinking(engine, f"<think>\nHm.\n</think>\n\nWell. {CALL}")
    bound = llm.bind_tools([ADD], **options)
    streamed = reduce(operator.add, bound.stream("1 + 2?"))
    for answer in (bound.invoke("1 + 2?"), streamed):
        assert answer.additional_kwargs == {"reasoning_content": "Hm."}
        assert answer.content.strip() == "Well." and answer.tool_calls[0]["name"] == "add"
        assert answer.usage_metadata["output_token_details"] == {"reasoning": 3}
        kinds = [block["type"] for block in answer.content_blocks]
        assert kinds[:2] == ["reasoning", "text"]
        request = llm._request([HumanMessage("1 + 2?"), answer, HumanMessage("So?")], None, options)
        shown = engine.prepare(request).prompt.text  # type: ignore[union-attr]
        assert "<|assistant|><think>Hm.</think>Well." in shown
        assert "<think>Hm.</think>" not in shown.replace("<|assistant|><think>Hm.</think>Well.", "")


@pytest.mark.parametrize("choice", ["any", True, "add", {"type": "function", "name": "add"}])
def test_a_call_that_has_to_be_made_follows_the_tool(
    llm: ChatMmspec, engine: Engine, choice: Any
) -> None:
    pytest.importorskip("llguidance", reason="needs the extra 'guided'")
    shown = with_tools(engine, "")["template_arguments"]
    bound = llm.bind_tools([ADD], tool_choice=choice, template_arguments=shown, max_tokens=400)
    answer = bound.invoke("1 + 2?")
    (call,) = answer.tool_calls
    assert call["name"] == "add" and call["args"].keys() <= {"a", "b"}
    assert not answer.content and answer.response_metadata["finish_reason"] == "tool_calls"


def test_tools_may_be_left_out_and_a_choice_names_one_of_them(llm: ChatMmspec) -> None:
    with pytest.raises(InputError, match=r"tool_choice='ad'.*'add'"):
        llm.bind_tools([ADD], tool_choice="ad")
    request = llm._request([HumanMessage("x")], None, {"tools": [ADD], "tool_choice": "none"})
    assert request.tools is None


def test_several_samples_are_several_generations(llm: ChatMmspec) -> None:
    made = llm.generate([[HumanMessage("Story")]], n=3, seed=4, temperature=1.0)
    texts = [generation.text for generation in made.generations[0]]
    assert len(set(texts)) == 3
    assert made.llm_output["token_usage"]["completion_tokens"] > 40


def test_logprobs_stand_in_the_metadata(llm: ChatMmspec) -> None:
    answer = llm.invoke(LEDGER, logprobs=2, max_tokens=4)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(place["token"] for place in content) == answer.content
    assert len(content[0]["top_logprobs"]) == 2 and content[0]["logprob"] <= 0


SHIPS = "The ship of Ulriko left Tandor with 80 barrels of oil."
FOUND = [Document(SHIPS, metadata={"source": "ships.txt"}), Document("Owls <image> sleep by day.")]


@pytest.mark.parametrize("way", ["invoke", "bind", "lambda", "stream", "batch"])
def test_passages_reach_the_prompt_and_the_drafter(
    llm: ChatMmspec, engine: Engine, way: str
) -> None:
    options: dict[str, Any] = {"passages": FOUND, **saying(engine, SHIPS)}
    if way == "invoke":
        answer = llm.invoke("Who?", **options)
    elif way == "bind":
        answer = llm.bind(**options).invoke("Who?")
    elif way == "lambda":
        answer = RunnableLambda(lambda question: llm.invoke(question, **options)).invoke("Who?")
    elif way == "batch":
        answer, _ = llm.batch(["Who?", "Who was it?"], **options)
    else:
        answer = None
        for chunk in llm.stream("Who?", **options):
            answer = chunk if answer is None else answer + chunk
    assert answer.content == SHIPS
    bare = llm.invoke("Who?", **saying(engine, SHIPS))
    told, without = (a.response_metadata["mmspec"]["steps"] for a in (answer, bare))
    assert told < without / 2, (told, without)
    grew = answer.usage_metadata["input_tokens"] - bare.usage_metadata["input_tokens"]
    assert grew > len(SHIPS) + len(FOUND[1].page_content)  # bytes are tokens here


def test_what_the_chains_own_prompt_holds_is_not_written_twice(
    llm: ChatMmspec, engine: Engine
) -> None:
    prompt = f"{SHIPS}\n{FOUND[1].page_content}\nWho?"
    with_them = llm.invoke(prompt, passages=FOUND)
    without = llm.invoke(prompt)
    assert with_them.content == without.content
    assert with_them.usage_metadata["input_tokens"] == without.usage_metadata["input_tokens"]
    twice = llm.invoke(prompt, passages=FOUND, placement="prompt")
    assert twice.usage_metadata["input_tokens"] > without.usage_metadata["input_tokens"]


def test_a_batch_has_as_many_threads_as_prompts_are_soon_decoded_or_as_langchain_bounds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = ChatMmspec(engine=engine, temperature=0, max_tokens=4)
    running, most, lock = 0, 0, threading.Lock()
    prepare = engine.prepare

    def counted(*prompt: Any, **options: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.1)
        with lock:
            running -= 1
        return prepare(*prompt, **options)

    monkeypatch.setattr(engine, "prepare", counted)
    bounded = {"max_concurrency": 2}
    for many, config, bound in ((10, None, 2 * engine.max_rows), (2, bounded, 2)):
        most = 0
        llm.batch(PROMPTS * many, config=config)
        assert most == bound


def test_what_langchain_remembers_is_not_decoded_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = ChatMmspec(engine=engine, temperature=0, max_tokens=20, cache=InMemoryCache())
    known = llm.invoke(PROMPTS[0])
    calls = Calls(engine, monkeypatch.setattr)
    answers = llm.batch(PROMPTS)
    assert answers[0].response_metadata["mmspec"] == known.response_metadata["mmspec"]
    assert len({answer.content for answer in answers}) == len(PROMPTS)
    llm.batch(PROMPTS)
    assert sum(calls.sizes) == len(PROMPTS) - 1
    new = answers[0].text + "?"
    made = llm.generate([[HumanMessage(text)] for text in (new, PROMPTS[1], PROMPTS[2])])
    counted = made.generations[0][0].message.usage_metadata["output_tokens"]
    assert made.llm_output["token_usage"]["completion_tokens"] == counted


def test_generate_takes_what_langchain_s_own_takes_by_place(llm: ChatMmspec) -> None:
    begun: list[int] = []

    class Handler(BaseCallbackHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            begun.append(1)

    for prompts in (PROMPTS[:1], PROMPTS):
        begun.clear()
        messages = [[HumanMessage(prompt)] for prompt in prompts]
        made = llm.generate(messages, ["never"], [Handler()])
        assert len(made.run) == len(begun) == len(prompts)


@pytest.mark.parametrize("outer", ["main", "generate", "thread", "task"])
@pytest.mark.parametrize("inner", ["here", "thread", "task"])
def test_a_batch_s_own_callback_may_ask(llm: ChatMmspec, outer: str, inner: str) -> None:
    """Also for one of the batch's own prompts."""
    asked: list[Any] = []

    def processor(ids: Any, scores: Any) -> Any:
        if not asked:
            asked.append(None)
            if inner == "here":
                asked[0] = llm.invoke(PROMPTS[0])
            elif inner == "task":
                asked[0] = asyncio.run(llm.ainvoke(PROMPTS[0]))
            else:
                context = copy_context()
                with ThreadPoolExecutor(1) as own:
                    one = own.submit(context.run, llm.invoke, PROMPTS[0])
                    asked[0] = one.result(20)
        return scores

    given: dict[str, Any] = {"logits_processors": [processor]}
    messages = [[HumanMessage(prompt)] for prompt in PROMPTS]
    ways: dict[str, Callable[[], Any]] = {
        "main": lambda: llm.batch(PROMPTS, **given),
        "thread": lambda: pool.submit(llm.batch, PROMPTS, **given).result(60),
        "generate": lambda: [
            generations[0].message for generations in llm.generate(messages, **given).generations
        ],
        "task": lambda: asyncio.run(asyncio.wait_for(llm.abatch(PROMPTS, **given), 60)),
    }
    with ThreadPoolExecutor(1) as pool:
        answers = ways[outer]()
    alone = [llm.invoke(prompt).content for prompt in PROMPTS]
    assert [answer.content for answer in answers] == alone
    assert asked[0].content == alone[0]


@pytest.mark.parametrize(
    ("setting", "told"),
    [({"temprature": 1}, "'temperature'"), ({"model_nam": "a"}, "unknown setting 'model_nam'")],
)
def test_a_misspelt_setting_is_named(engine: Engine, setting: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ChatMmspec(engine=engine, **setting)


def test_a_request_s_own_names_are_settings_too(engine: Engine) -> None:
    llm = ChatMmspec(engine=engine, temperature=0, max_new_tokens=3, ignore_eos=True, top_k=5)
    assert llm.options == {"max_new_tokens": 3, "ignore_eos": True, "top_k": 5}
    assert llm.invoke("a").usage_metadata["output_tokens"] == 3  # type: ignore[index]
    assert llm.invoke("a", max_tokens=2).usage_metadata["output_tokens"] == 2  # type: ignore[index]


class Sale(BaseModel):
    """Something that was sold."""

    name: Literal["Anna", "Bob"]
    count: int = Field(ge=0, le=9)
    paid: bool


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
def test_structured_output_is_of_the_form_and_its_keys_are_drafted(engine: Engine) -> None:
    llm = ChatMmspec(engine=engine, temperature=0, max_tokens=200)
    sale = llm.with_structured_output(Sale).invoke("What was sold?")
    assert isinstance(sale, Sale)
    told = llm.with_structured_output(Sale, include_raw=True).invoke("What was sold?")
    assert told["parsed"] == sale and told["parsing_error"] is None
    assert told["raw"].response_metadata["mmspec"]["drafters"]["forced"]["accepted"] > 5
    written = Sale.model_json_schema()
    as_dict = llm.with_structured_output(written).invoke("What was sold?")
    assert Sale(**as_dict) == sale and set(as_dict) == {"name", "count", "paid"}
    chain = llm.with_structured_output(Sale)
    assert all(isinstance(one, Sale) for one in chain.batch(["Who?", "How many?", "Who?"]))


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
@pytest.mark.parametrize("schema", [Sale, Sale.model_json_schema()], ids=["model", "schema"])
@pytest.mark.parametrize("cut", [{"max_tokens": 12}, {"stop": [":"]}], ids=["length", "stop"])
def test_a_part_of_a_form_is_no_value_of_it(engine: Engine, schema: Any, cut: Any) -> None:
    llm = ChatMmspec(engine=engine, temperature=0)
    wanted = llm.with_structured_output(schema, **cut)
    for ask in (wanted.invoke, lambda text: list(wanted.stream(text)), _waited_for(wanted.ainvoke)):
        with pytest.raises(OutputParserException, match=r"before its form .*more max_tokens"):
            ask("a")
    told = llm.with_structured_output(schema, include_raw=True, **cut).invoke("a")
    assert told["parsed"] is None and isinstance(told["parsing_error"], OutputParserException)


@pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
def test_a_form_that_is_whole_as_its_length_ends_is_a_value(engine: Engine) -> None:
    schema = {"title": "A", "type": "object", "properties": {"a": {"enum": ["b"]}}}
    schema["required"] = ["a"]
    llm = ChatMmspec(engine=engine, temperature=0)
    whole = llm.with_structured_output(schema, include_raw=True).invoke("a")
    length = whole["raw"].usage_metadata["output_tokens"] - 1  # without the end of the answer
    cut = llm.with_structured_output(schema, include_raw=True, max_tokens=length).invoke("a")
    assert cut["raw"].response_metadata["finish_reason"] == "length"
    assert cut["parsed"] == whole["parsed"] == {"a": "b"}


def _waited_for(ask: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: asyncio.run(ask(text))


def test_tokens_are_counted_by_the_model_s_own_tokenizer(llm: ChatMmspec, engine: Engine) -> None:
    assert engine.tokenizer is not None
    alone = engine.tokenizer(LEDGER, add_special_tokens=False)["input_ids"]
    assert llm.get_token_ids(LEDGER) == alone
    long = [HumanMessage(LEDGER), AIMessage("What?"), HumanMessage("Hello there")]
    assert llm.get_num_tokens_from_messages(long) > len(alone) == llm.get_num_tokens(LEDGER)
    assert trim_messages(long, max_tokens=60, token_counter=llm) == long[1:]
