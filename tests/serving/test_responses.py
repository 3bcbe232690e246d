"""Responses: a chat's answers in another form."""

import base64
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from integrations.frameworks import ADD, CALL, png
from PIL import Image
from serving.asking import CHAT, RESPONSES, SAMPLED, asked, make_it_say, needs_guided, with_template
from starlette.testclient import TestClient

import mmspec

if TYPE_CHECKING:
    from openai import OpenAI

FLAT_ADD = {"type": "function", **ADD["function"]}


def respond(given: object = "Say something.", **fields: Any) -> dict[str, Any]:
    """A response's body."""
    return {"input": given, "max_output_tokens": 24, **SAMPLED, **fields}


def text_of(body: dict[str, Any]) -> str:
    parts = [part for item in body["output"] for part in item.get("content", ())]
    return "".join(part["text"] for part in parts)


def streamed(client: TestClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events, whose numbers and names are as they should be."""
    response = client.post(RESPONSES, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    pairs = [block.split("\n") for block in response.text.split("\n\n") if block]
    told = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name for name, _ in pairs] == [f"event: {event['type']}" for event in told]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert all(event.get("delta") != "" for event in told)
    return told


def rebuilt(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output, from the events alone: each is about what an earlier one began."""
    items = list[dict[str, Any]]()
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["id"] not in (None, *(item["id"] for item in items))
            items.append(json.loads(json.dumps(event["item"])))
            continue
        if "output_index" not in event:
            continue
        item = items[event["output_index"]]
        assert event.get("item_id", item["id"]) == item["id"]
        if kind == "content_part.added":
            item["content"].append({**event["part"], "logprobs": []})
        elif kind == "output_text.delta":
            item["content"][event["content_index"]]["text"] += event["delta"]
            item["content"][event["content_index"]]["logprobs"] += event["logprobs"]
        elif kind == "output_text.done":
            assert event["text"] == item["content"][event["content_index"]]["text"]
        elif kind == "content_part.done":
            assert event["part"] == item["content"][event["content_index"]]
        elif kind == "function_call_arguments.delta":
            item["arguments"] += event["delta"]
        elif kind == "function_call_arguments.done":
            assert event["arguments"] == item["arguments"]
        else:
            assert kind == "output_item.done"
            assert {**item, "status": event["item"]["status"]} == event["item"]
            items[event["output_index"]] = event["item"]
    return items


def unnamed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in items]


def test_the_text_is_the_chat_s_and_so_are_the_figures(client: TestClient) -> None:
    body = client.post(RESPONSES, json=respond(metadata={"a": "b"}, top_p=0.5)).json()
    chat = client.post(CHAT, json=asked(top_p=0.5)).json()
    assert text_of(body) == chat["choices"][0]["message"]["content"]
    assert body["object"] == "response" and body["model"] == "nano" and body["error"] is None
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (body["metadata"], body["top_p"], body["store"]) == ({"a": "b"}, 0.5, False)
    usage = body["usage"]
    assert usage["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert usage["output_tokens"] == chat["usage"]["completion_tokens"] == 24
    assert usage["total_tokens"] == usage["input_tokens"] + 24
    assert usage["input_tokens_details"]["cached_tokens"] >= 0
    assert body["mmspec"]["seed"] == 7


def test_a_stream_adds_up_to_the_whole_response(client: TestClient) -> None:
    body = respond(top_logprobs=2, include=["message.output_text.logprobs"])
    whole = client.post(RESPONSES, json=body).json()
    begun, going, *told, last = streamed(client, body)
    assert (begun["type"], going["type"]) == ("response.created", "response.in_progress")
    assert begun["response"]["status"] == "in_progress" and begun["response"]["output"] == []
    assert last["type"] == "response.incomplete"
    assert {event["response"]["id"] for event in (begun, going, last)} == {begun["response"]["id"]}
    assert rebuilt(told) == last["response"]["output"]
    assert unnamed(last["response"]["output"]) == unnamed(whole["output"])
    (part,) = whole["output"][0]["content"]
    assert len(part["logprobs"]) == 24 and {len(p["top_logprobs"]) for p in part["logprobs"]} == {2}
    assert last["response"]["usage"]["output_tokens"] == 24


def test_input_is_a_chat_with_pictures_and_instructions(
    client: TestClient, engine: mmspec.Engine
) -> None:
    image = Image.new("RGB", (40, 30), "red")
    url = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    first = client.post(RESPONSES, json=respond()).json()
    given = [
        {"role": "user", "content": "Say something."},
        *first["output"],  # as it came
        {
            "type": "message", "role": "user", "content": [
                {"type": "input_image", "image_url": url, "detail": "low"},
                {"type": "input_text", "text": "What is it?"},
            ],
        },
    ]  # fmt: skip
    body = client.post(RESPONSES, json=respond(given, instructions="Be brief.")).json()
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say something."},
        {"role": "assistant", "content": text_of(first)},
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}],
        },
    ]
    plain = engine.generate(messages, max_new_tokens=24, **SAMPLED)
    assert text_of(body) == plain.text
    assert body["usage"]["input_tokens"] == plain.stats.prompt_tokens > 256


@pytest.mark.parametrize("words", [f"I add. {CALL}", f" {CALL}\n{CALL} Done.", "None.", " ", ""])
def test_calls_are_items_in_their_order(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    make_it_say(engine, words, monkeypatch)
    body = respond("Add.", tools=[FLAT_ADD], max_output_tokens=200, ignore_eos=False)
    whole = client.post(RESPONSES, json=body).json()
    *told, last = streamed(client, body)
    assert (whole["status"], last["type"]) == ("completed", "response.completed")
    assert rebuilt(told) == last["response"]["output"]
    assert unnamed(last["response"]["output"]) == unnamed(whole["output"])
    said = [item["content"][0]["text"] if "content" in item else CALL for item in whole["output"]]
    assert " ".join(said).split() == words.split()
    assert len(said) == 1 or all(map(str.strip, said)), "what is blank beside a call is not told"
    for item in whole["output"]:
        if item["type"] == "function_call":
            assert item["name"] == "add" and json.loads(item["arguments"]) == {"a": 1, "b": 2}
    assert {item["status"] for item in whole["output"]} == {"completed"}


def test_tools_and_earlier_calls_reach_the_template(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_it_say(engine, "6", monkeypatch)
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 5}'}
    given = [
        {"role": "user", "content": "Add."},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {**call, "id": "fc_1", "status": "completed"},
        {**call, "call_id": "c2", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "6"},
        {"type": "function_call_output", "call_id": "c2", "output": [
            {"type": "input_text", "text": "7"}]},
    ]  # fmt: skip
    body = respond(given, tools=[FLAT_ADD], max_output_tokens=200, ignore_eos=False)
    for choice, tools in (("auto", "add"), ("none", "")):
        made = client.post(RESPONSES, json={**body, "tool_choice": choice}).json()
        assert text_of(made) == "6" and made["tools"] == [FLAT_ADD]
        wanted = f'<s>{tools}<|user|>Add.<|assistant|>[add {{"a": 5}}][add {{}}]<|tool|>6<|tool|>7'
        assert prompts[-1] is not None and prompts[-1].startswith(wanted)


@needs_guided
def test_an_answer_follows_a_schema(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Anna", "Bob"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "sale", "schema": schema, "strict": True}
    body = respond(max_output_tokens=400, ignore_eos=False)
    made = client.post(RESPONSES, json={**body, "text": {"format": form}}).json()
    assert json.loads(text_of(made))["name"] in ("Anna", "Bob")
    assert made["text"] == {"format": form} and made["status"] == "completed"
    free = client.post(RESPONSES, json={**body, "text": {"format": {"type": "json_object"}}})
    assert text_of(free.json()).lstrip().startswith("{")


@needs_guided
def test_a_call_that_has_to_be_made_is_made(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_template(engine, monkeypatch)
    body = respond(tools=[FLAT_ADD], max_output_tokens=600, ignore_eos=False)
    named: object = {"type": "function", "name": "add"}
    for choice in ("required", named):
        made = client.post(RESPONSES, json={**body, "tool_choice": choice}).json()
        (item,) = made["output"]
        assert made["status"] == "completed" and item["type"] == "function_call"
        arguments = json.loads(item["arguments"])
        assert item["name"] == "add" and arguments.keys() <= {"a", "b"}
        assert all(isinstance(value, int) for value in arguments.values())
        *told, last = streamed(client, {**body, "tool_choice": choice})
        assert rebuilt(told) == last["response"]["output"]
        assert unnamed(rebuilt(told)) == unnamed([item])
    chat = asked(tools=[ADD], tool_choice="required", max_tokens=600, ignore_eos=False)
    (choice,) = client.post(CHAT, json={**chat, "parallel_tool_calls": False}).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == arguments
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("begun", [f"I add. {CALL}\n", ""])
@pytest.mark.parametrize("half", [CALL[:30], '{"name": "add", "argum'])
def test_half_a_call_is_text(
    client: TestClient,
    engine: mmspec.Engine,
    monkeypatch: pytest.MonkeyPatch,
    begun: str,
    half: str,
) -> None:
    make_it_say(engine, begun + half + "more", monkeypatch)
    assert engine.tokenizer is not None
    length = len(engine.tokenizer.encode(begun + half, add_special_tokens=False))
    body = respond("Add.", tools=[FLAT_ADD], max_output_tokens=length, ignore_eos=False)
    whole = client.post(RESPONSES, json=body).json()
    *told, last = streamed(client, body)
    assert whole["status"] == last["response"]["status"] == "incomplete"
    assert rebuilt(told) == last["response"]["output"]
    assert unnamed(whole["output"]) == unnamed(rebuilt(told))
    *before, cut = whole["output"]
    assert cut["status"] == "incomplete" and cut["content"][0]["text"].strip() == half
    assert {item["status"] for item in before} <= {"completed"}
    assert [item["type"] for item in before] == (["message", "function_call"] if begun else [])


@pytest.mark.parametrize(
    ("fields", "told", "param"),
    [
        ({"input": None}, "a text or a list of items", "input"),
        ({"input": []}, "a text or a list of items", "input"),
        ({"input": [3]}, "input[0]", "input[0]"),
        ({"input": [{"role": "user", "content": 3}]}, "text or a list", "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "no items are kept", "input[0]"),
        ({"input": [{"type": "function_call", "arguments": "{"}]}, "no JSON", "input[0]"),
        ({"input": [{"type": "function_call", "arguments": "[" * 99999}]}, "no JSON", "input[0]"),
        ({"input": [{"type": "function_call"}]}, "expected a text", "input[0].name"),
        ({"input": [{"type": "reasoning", "summary": 5}]}, "a list of parts", "input[0].summary"),
        ({"conversation": "conv_1"}, "expected previous_response_id", "conversation"),
        ({"background": True}, "stream=true", "background"),
        ({"prompt": {"id": "a"}}, "instructions and input", "prompt"),
        ({"truncation": "auto"}, "'disabled'", "truncation"),
        ({"reasoning": {"effort": "so so"}}, "none, minimal, low", "reasoning.effort"),
        ({"reasoning": {"summary": "detailed"}}, "told whole", "reasoning.summary"),
        ({"reasoning_effort": "low"}, "expected reasoning", "reasoning_effort"),
        ({"text": {"verbosity": "low"}}, "say it in a message", "verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "'xml'", "text.format"),
        ({"text": {"format": {"type": "json_object"}}}, "ignore_eos", "text.format"),
        ({"tools": [{"type": "web_search"}]}, '"name"', "tools"),
        ({"tools": [ADD]}, '{"type": "function", "name": ...}', "tools"),
        ({"tools": [FLAT_ADD], "tool_choice": "maybe"}, "'required', 'add'", "tool_choice"),
        ({"tools": [FLAT_ADD], "top_logprobs": 1}, "leave out", "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens: got 0", "max_output_tokens"),
        ({"max_output_tokens": 10**6}, "set max_output_tokens <=", None),
        ({"max_tokens": 5}, "expected max_output_tokens", "max_tokens"),
        ({"n": 2}, "one answer", "n"),
        ({"include": ["file_search_call.results"]}, "logprobs", "include"),
        ({"top_logprobs": 21}, "0 to 20", "top_logprobs"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_to_do_instead(
    client: TestClient, fields: dict[str, Any], told: str, param: str | None
) -> None:
    response = client.post(RESPONSES, json=respond(**{"input": "a", **fields}))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert told in error["message"] and error["param"] == param


def test_a_stream_that_fails_says_so_last(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(engine, 5, monkeypatch)
    begun, going, *told, last = streamed(client, respond())
    assert begun["type"] == "response.created" and told
    assert last["type"] == "error" and last["code"] == last["error"]["code"] == "internal_error"
    assert going["type"] == "response.in_progress"


def break_after(engine: mmspec.Engine, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next decode loop fails behind so many steps."""
    each = engine.stream_each

    def broken(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for number, step in enumerate(each(*args, **kwargs)):
            yield step
            if number == steps:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "stream_each", broken)


# OpenAI's own client


@pytest.fixture
def openai_client(client: TestClient) -> "OpenAI":
    openai = pytest.importorskip("openai", minversion="2")
    try:
        return openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=client, max_retries=0
        )
    except TypeError as error:  # of another httpx
        pytest.skip(str(error))


def test_openai_s_client_reads_a_response(openai_client: "OpenAI", client: TestClient) -> None:
    body = respond(max_output_tokens=24)
    own = {name: body.pop(name) for name in ("seed", "ignore_eos")}
    made = openai_client.responses.create(model="nano", **body, extra_body=own)
    plain = client.post(RESPONSES, json=respond()).json()
    assert made.output_text == text_of(plain)
    assert made.status == "incomplete" and made.usage is not None and made.usage.output_tokens == 24
    again = [{"role": "user", "content": "Say something."}, *made.output]
    next_one = openai_client.responses.create(model="nano", **{**body, "input": again})
    assert next_one.output_text


def test_openai_s_client_reads_a_stream(
    openai_client: "OpenAI",
    client: TestClient,
    engine: mmspec.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_it_say(engine, f"I add. {CALL}", monkeypatch)
    deltas, kinds = "", list[str]()
    with openai_client.responses.stream(
        model="nano", input="Add.", tools=[FLAT_ADD], max_output_tokens=200, temperature=0
    ) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                deltas += event.delta
                assert event.snapshot == deltas
        made = stream.get_final_response()
    assert deltas.strip() == made.output_text.strip() == "I add."
    assert [item.type for item in made.output] == ["message", "function_call"]
    assert json.loads(made.output[1].arguments) == {"a": 1, "b": 2}
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    plain = openai_client.responses.create(model="nano", input="Add.", stream=True, temperature=0)
    assert "response.output_text.done" in [event.type for event in plain]


def test_openai_s_client_raises_what_went_wrong(
    openai_client: "OpenAI",
    client: TestClient,
    engine: mmspec.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="no response 'resp_1' is kept here"):
        openai_client.responses.create(model="nano", input="a", previous_response_id="resp_1")
    made = openai_client.responses.create(model="nano", input="a", store=True, max_output_tokens=3)
    assert openai_client.responses.retrieve(made.id).output_text == made.output_text
    openai_client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(made.id)
    break_after(engine, 5, monkeypatch)
    body = {"input": "a", "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APIError, match="the server's log"):
        list(openai_client.responses.create(model="nano", stream=True, **body))


@needs_guided
def test_openai_s_client_parses_a_form(openai_client: "OpenAI") -> None:
    from pydantic import BaseModel

    class Sale(BaseModel):
        name: str
        is_sold: bool

    made = openai_client.responses.parse(model="nano", input="a", text_format=Sale, temperature=0,
                                         max_output_tokens=2000)  # fmt: skip
    assert isinstance(made.output_parsed, Sale)
