import base64
import json
from typing import Any

import pytest
from integrations.frameworks import ADD, CALL, png
from PIL import Image
from serving.asking import CHAT, SAMPLED, asked, events, make_it_say, needs_guided
from starlette.testclient import TestClient

import mmspec


def text_of(body: dict[str, Any], index: int = 0) -> str:
    return body["choices"][index]["message"]["content"]


def streamed(client: TestClient, body: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return events(response.text)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_p": 0.5, "top_k": 20}, {"top_p": 0.5, "top_k": 20}),
        ({"presence_penalty": 2, "frequency_penalty": 1.5},
         {"presence_penalty": 2, "frequency_penalty": 1.5}),
        ({"logit_bias": {"70": 100}}, {"logit_bias": {70: 100}}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"speculate": False}, {"speculate": False}),
        ({"max_completion_tokens": 24, "user": "me", "stop": ["\u2603"] * 16}, {}),
    ],
)  # fmt: skip
def test_the_text_is_that_of_generate(
    client: TestClient, engine: mmspec.Engine, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    body = client.post(CHAT, json=asked(**fields)).json()
    plain = engine.generate("Say something.", max_new_tokens=24, **{**SAMPLED, **options})
    assert text_of(body) == plain.text
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == "nano" and body["object"] == "chat.completion"
    assert body["usage"]["prompt_tokens"] == plain.stats.prompt_tokens
    assert body["usage"]["completion_tokens"] == 24
    assert body["mmspec"]["seed"] == plain.seed


def test_a_stream_adds_up_to_the_whole_answer(client: TestClient) -> None:
    body = asked(n=2, logprobs=True, top_logprobs=2)
    whole = client.post(CHAT, json=body).json()
    chunks = streamed(client, {**body, "stream_options": {"include_usage": True}})
    *parts, last = chunks
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert last["choices"] == [] and all(part["usage"] is None for part in parts)
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 48
    for index in (0, 1):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in own) == text_of(whole, index)
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]
        places = [place for c in own if c["logprobs"] for place in c["logprobs"]["content"]]
        assert places == whole["choices"][index]["logprobs"]["content"]
        assert len(places) == 24 and {len(p["top_logprobs"]) for p in places} == {2}
    assert text_of(whole, 0) != text_of(whole, 1)


def test_a_text_ends_before_a_stop_and_at_eos(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = text_of(client.post(CHAT, json=asked()).json())
    stopped = client.post(CHAT, json=asked(stop=[free[8:11]])).json()
    assert text_of(stopped) == free[: free.index(free[8:11])]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    ids = engine.generate("Say something.", max_new_tokens=24, **SAMPLED).tokens
    prepare = engine.prepare
    monkeypatch.setattr(
        engine, "prepare", lambda r: prepare(r, eos_token_id=ids[6], ignore_eos=False)
    )
    ended = client.post(CHAT, json=asked(logprobs=True)).json()["choices"][0]
    number = ids.index(ids[6])
    assert ended["finish_reason"] == "stop"
    assert len(ended["logprobs"]["content"]) == number, "the ending token is no part of the text"


def test_an_image_comes_as_a_data_url(client: TestClient, engine: mmspec.Engine) -> None:
    image = Image.new("RGB", (40, 30), "red")
    url = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": "What is it?"},
    ]
    body = client.post(CHAT, json=asked(messages=[{"role": "user", "content": parts}])).json()
    plain = engine.generate("What is it?", images=image, max_new_tokens=24, **SAMPLED)
    assert text_of(body) == plain.text
    assert body["usage"]["prompt_tokens"] == plain.stats.prompt_tokens > 256


def test_a_prediction_takes_fewer_steps_and_changes_nothing(client: TestClient) -> None:
    plain = client.post(CHAT, json=asked("Edit it.", reuse=False)).json()
    foretold = {"type": "content", "content": text_of(plain)}
    for content in (foretold["content"], [{"type": "text", "text": foretold["content"]}]):
        prediction = {"type": "content", "content": content}
        helped = client.post(CHAT, json=asked("Edit it.", prediction=prediction)).json()
        assert text_of(helped) == text_of(plain)
    wrong = {"type": "content", "content": "nothing like it"}
    missed = client.post(CHAT, json=asked("Edit it.", prediction=wrong)).json()
    assert text_of(missed) == text_of(plain)
    details = missed["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] == 15
    assert details["rejected_prediction_tokens"] > 10
    assert plain["usage"]["completion_tokens_details"] == {
        "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0, "reasoning_tokens": 0
    }  # fmt: skip


def test_a_right_prediction_is_counted_and_accelerates(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "def area(width, height): return width*height"
    body = asked(max_tokens=200, ignore_eos=False, reuse=False)
    make_it_say(engine, words, monkeypatch)
    plain = client.post(CHAT, json=body).json()
    prediction = {"type": "content", "content": words.replace("width*height", "1")}
    helped = client.post(CHAT, json={**body, "prediction": prediction}).json()
    assert text_of(helped) == text_of(plain) == words
    assert helped["mmspec"]["tokens_per_step"] > 2 * plain["mmspec"]["tokens_per_step"]
    counted = helped["usage"]["completion_tokens_details"]
    assert counted["accepted_prediction_tokens"] == 32
    assert counted["rejected_prediction_tokens"] == 1
    *_, last = streamed(
        client,
        {**body, "prediction": prediction, "stream_options": {"include_usage": True}},
    )
    assert last["usage"]["completion_tokens_details"] == counted


def test_passages_are_drafted_from_and_namespaces_kept_apart(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "Bob sold 4 plums to Carl, and Anna 3 pears."
    prompts = make_it_say(engine, words, monkeypatch)
    body = asked(max_tokens=200, ignore_eos=False, namespace="first")
    plain = client.post(CHAT, json=body).json()
    beside = [{"text": f"Entry: {words}", "source": "ledger", "in_prompt": False}]
    helped = client.post(CHAT, json={**body, "passages": beside, "reuse": False}).json()
    assert text_of(helped) == text_of(plain) == words
    assert helped["mmspec"]["tokens_per_step"] > plain["mmspec"]["tokens_per_step"]
    assert helped["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    cached = [
        client.post(CHAT, json={**body, "namespace": name}).json()["usage"]["prompt_tokens_details"]
        for name in ("first", "other")
    ]
    assert cached[0]["cached_tokens"] > 0 == cached[1]["cached_tokens"]
    passages = ["A text that is read.", {"text": "Another.", "source": "a ledger"}]
    client.post(CHAT, json={**body, "passages": passages})
    assert prompts[-1] is not None
    assert all(one in prompts[-1] for one in ("A text that is read.", "Another.", "a ledger"))


@pytest.mark.parametrize("streams", [False, True])
def test_tools_reach_the_template_and_calls_come_back(
    client: TestClient, engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    prompts = make_it_say(engine, f"I add. {CALL}{CALL}", monkeypatch)
    earlier = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1", "type": "function",
                "function": {"name": "add", "arguments": '{"a": 5}'},
            }
        ],
    }  # fmt: skip
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "6"}
    messages = [{"role": "user", "content": "Add."}, earlier, answer]
    body = asked(messages=messages, tools=[ADD], max_tokens=200, ignore_eos=False)
    if not streams:
        (choice,) = client.post(CHAT, json=body).json()["choices"]
        calls = choice["message"]["tool_calls"]
        assert choice["message"]["content"] == "I add."
        reason = choice["finish_reason"]
    else:
        choices = [chunk["choices"][0] for chunk in streamed(client, body)]
        calls = [c for one in choices for c in one["delta"].get("tool_calls", ())]
        assert [call.pop("index") for call in calls] == [0, 1]
        text = "".join(one["delta"].get("content", "") for one in choices)
        assert text.strip() == "I add."
        reason = choices[-1]["finish_reason"]
    assert reason == "tool_calls"
    assert len({call["id"] for call in calls}) == len(calls) == 2
    for call in calls:
        assert call["type"] == "function" and call["id"].startswith("call_")
        assert call["function"]["name"] == "add"
        assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    assert prompts[-1].startswith("<s>add<|user|>") and '[add {"a": 5}]<|tool|>6' in prompts[-1]
    client.post(CHAT, json={**body, "tool_choice": "none"})
    assert not prompts[-1].startswith("<s>add")


@needs_guided
def test_json_comes_in_the_form_that_is_asked_for(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Anna", "Bob"]}, "is_sold": {"type": "boolean"}},
        "required": ["name", "is_sold"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "json_schema": {"name": "sale", "schema": schema}}
    body = asked(response_format=named, max_tokens=400, ignore_eos=False)
    whole = client.post(CHAT, json={**body, "n": 2}).json()
    for index in (0, 1):
        assert whole["choices"][index]["finish_reason"] == "stop"
        said = json.loads(text_of(whole, index))
        assert said.keys() == {"name", "is_sold"} and said["name"] in ("Anna", "Bob")
    chunks = streamed(client, body)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == text_of(whole)
    plain = client.post(CHAT, json={**body, "speculate": False}).json()
    assert text_of(plain) == text
    drafted = client.post(CHAT, json={**body, "speculate": True}).json()["mmspec"]
    assert drafted["drafters"]["forced"]["accepted"] > 5, "keys and words are drafted"
    free = client.post(CHAT, json={**body, "response_format": {"type": "json_object"}}).json()
    assert text_of(free).lstrip().startswith("{")
    wrong = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "b"}}}
    refused = client.post(CHAT, json={**body, "response_format": wrong})
    assert refused.status_code == 400 and "JSON schema" in refused.text
