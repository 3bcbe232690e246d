"""What a model thinks before it answers, in chats and responses, whole and streamed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from integrations.frameworks import ADD, CALL, THINKING_TEMPLATE, saying
from reading.families import FAMILIES, thinking_engine
from serving.asking import CHAT, RESPONSES, asked, events, needs_guided
from serving.test_responses import FLAT_ADD, respond, streamed
from starlette.testclient import TestClient

import mmspec
from mmspec.reading import AnswerReader, Reading
from mmspec.serving import ServerSettings, create_app
from mmspec.serving.response_items import read_items

Say = Callable[..., list[str]]
HM = "<think>\nHm, 日本.\n</think>\n\n"
LONG: dict[str, Any] = {"max_tokens": 400, "ignore_eos": False}


@pytest.fixture(scope="module")
def thinker() -> mmspec.Engine:
    return thinking_engine()


@pytest.fixture(scope="module")
def server(thinker: mmspec.Engine) -> Iterator[TestClient]:
    with TestClient(create_app(thinker, ServerSettings(name="thinker", max_samples=4))) as client:
        yield client


@pytest.fixture
def say(thinker: mmspec.Engine, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Leaves the model one answer; the template's own end, if any, is its beginning. Gives the
    texts of the prompts to come."""
    prepare = thinker.prepare

    def choose(words: str, template: str = THINKING_TEMPLATE) -> list[str]:
        options, prompts = saying(thinker, words), list[str]()
        options.pop("max_tokens")
        options["template_arguments"] = {"chat_template": template}

        def prepared(request: mmspec.Request) -> mmspec.Request:
            made = prepare(replace(request, **options))
            prompts.append(str(made.prompt.text))  # type: ignore[union-attr]
            return made

        monkeypatch.setattr(thinker, "prepare", prepared)
        return prompts

    return choose


def joined(told: list[dict[str, Any]], name: str) -> str:
    deltas = [choice["delta"] for event in told for choice in event["choices"]]
    return "".join(delta.get(name) or "" for delta in deltas)


def test_a_chat_tells_reasoning_apart(server: TestClient, say: Say) -> None:
    say(f"{HM}Well. {CALL}")
    body = asked(tools=[ADD], **LONG)
    made = server.post(CHAT, json=body).json()
    (choice,) = made["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, 日本.", "Well.")
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["add"]
    assert choice["finish_reason"] == "tool_calls"
    details = made["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len("Hm, 日本.".encode())
    usage = {"stream_options": {"include_usage": True}}
    told = events(server.post(CHAT, json={**body, "stream": True, **usage}).text)
    assert told[-1]["usage"]["completion_tokens_details"] == details
    assert joined(told, "reasoning_content") == "Hm, 日本." and joined(told, "content") == "Well. "
    assert told[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("has_tools", [True, False])
def test_no_mark_of_special_tokens_is_told(server: TestClient, say: Say, has_tools: bool) -> None:
    answer = FAMILIES["gpt-oss"].answer.replace("get_weather", "add")
    say(answer, THINKING_TEMPLATE + "{# <|channel|> #}")
    body = asked(**LONG, logprobs=True, **({"tools": [ADD]} if has_tools else {}))
    made = server.post(CHAT, json=body).json()
    (choice,) = made["choices"]
    message = choice["message"]
    assert message["reasoning_content"] == "Let me see."
    assert message["content"].startswith("Well.") and "<" not in message["content"]
    assert ("Paris" in message["content"]) == (not has_tools) == ("tool_calls" not in message)
    told = events(server.post(CHAT, json={**body, "stream": True}).text)
    assert joined(told, "reasoning_content") == "Let me see."
    assert joined(told, "content") == message["content"]
    places = [(e["choices"][0]["logprobs"] or {"content": []})["content"] for e in told]
    tokens = [place["token"] for own in places for place in own]
    assert tokens == [place["token"] for place in choice["logprobs"]["content"]]
    assert tokens[0] == "<|channel|>"
    assert made["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("Let me see.")


def test_samples_and_stop_strings_are_read_one_by_one(server: TestClient, say: Say) -> None:
    say(f"{HM}Well. So be it.")
    for end, text in ((" So", "Well."), ("日", "")):
        body = asked(**LONG, n=2, stop=end)
        made = server.post(CHAT, json=body).json()
        told = events(server.post(CHAT, json={**body, "stream": True}).text)
        for choice in made["choices"]:
            own = [e for e in told if e["choices"][0]["index"] == choice["index"]]
            message = choice["message"]
            assert (message["content"], choice["finish_reason"]) == (text, "stop")
            assert joined(own, "content") == text
            assert joined(own, "reasoning_content") == message["reasoning_content"]
            assert message["reasoning_content"] == ("Hm, 日本." if text else "Hm, ")


def test_a_response_has_an_item_of_reasoning(server: TestClient, say: Say) -> None:
    say(f"{HM}Well. {CALL}")
    body = respond("Add.", tools=[FLAT_ADD], max_output_tokens=400, ignore_eos=False)
    made = server.post(RESPONSES, json=body).json()
    thought, message, call = made["output"]
    assert thought["type"] == "reasoning" and thought["summary"] == []
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm, 日本."}]
    assert message["content"][0]["text"].strip() == "Well." and call["name"] == "add"
    tokens = made["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert tokens == len("Hm, 日本.".encode())
    told = streamed(server, body)
    deltas = [e["delta"] for e in told if e["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Hm, 日本."
    done = [e["item"]["type"] for e in told if e["type"] == "response.output_item.done"]
    assert done == ["reasoning", "message", "function_call"]


def test_a_message_has_the_log_probabilities_of_its_reasoning_too(
    server: TestClient, say: Say
) -> None:
    say(f"{HM}Well.")
    body = respond(max_output_tokens=400, ignore_eos=False)
    body |= {"include": ["message.output_text.logprobs"]}
    *told, last = streamed(server, body)
    _, message = last["response"]["output"]
    places = message["content"][0]["logprobs"]
    text = "".join(place["token"] for place in places)
    assert text.startswith("<think>\nHm") and "Well." in text
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    assert [place for event in deltas for place in event["logprobs"]] == places


def test_reasoning_that_a_client_sends_again_reaches_the_template(
    server: TestClient, say: Say
) -> None:
    prompts = say("So.")
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    thought["content"] = [{"type": "reasoning_text", "text": "Hm."}]
    said = {"role": "assistant", "content": "5"}
    asked_first, more = {"role": "user", "content": "2+3?"}, {"role": "user", "content": "Sure?"}
    silent = {**thought, "content": None, "encrypted_content": "..."}
    for items in ([asked_first, thought, said, more], [asked_first, silent, said, thought, more]):
        answer = server.post(RESPONSES, json=respond(items, max_output_tokens=9))
        assert answer.status_code == 200, answer.text
    messages = [asked_first, {**said, "reasoning_content": "Hm."}, more]
    server.post(CHAT, json={"messages": messages, "max_tokens": 9})
    shown = "<s><|user|>2+3?<|assistant|><think>Hm.</think>5<|user|>Sure?<|assistant|>"
    assert prompts == [shown, shown.replace("<think>Hm.</think>", ""), shown]
    (message,) = read_items([silent, said], max_media=0)  # a template may ask whether there is any
    assert "reasoning_content" not in message


@needs_guided
@pytest.mark.parametrize("mark", ["</think>", "</thinking>"])
def test_json_of_a_schema_begins_behind_the_reasoning(
    server: TestClient, thinker: mmspec.Engine, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """Where the end of it is a token; where it is none, there is no reasoning."""
    template = THINKING_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
    if mark != "</think>":
        monkeypatch.setattr("mmspec.reading.reading._tokens_around", lambda *_: None)
    prepare, ends = thinker.prepare, thinker.tokenizer.convert_tokens_to_ids("</think>")  # type: ignore[union-attr]

    def thought(_: int, ids: Any) -> list[int]:
        """Three letters, then the reasoning's end; the grammar says what else."""
        num_said = len(ids) - 1 - int((ids == 5).nonzero()[-1]) - len("<think>\n")
        return [8 + ord("{")] if num_said < 3 else [ends, *range(2, 264)]

    arguments = {"chat_template": template}
    options = {"template_arguments": arguments, "prefix_allowed_tokens_fn": thought}
    if mark != "</think>":
        options.pop("prefix_allowed_tokens_fn")
    monkeypatch.setattr(thinker, "prepare", lambda request: prepare(replace(request, **options)))
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    body = asked(response_format=form, **{**LONG, "max_tokens": 80, "temperature": 0})
    (choice,) = server.post(CHAT, json=body).json()["choices"]
    message = choice["message"]
    if mark == "</think>":
        assert message["reasoning_content"].startswith("{{{")
    else:
        assert "reasoning_content" not in message and message["content"].startswith("{")


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_an_answer_is_read_once(
    server: TestClient, say: Say, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Also to count its reasoning, and where it has none."""
    say(f"{HM}Well.")
    readers, make = list[object](), Reading.reader

    def counted(self: Reading) -> AnswerReader:
        readers.append(self)
        return make(self)

    monkeypatch.setattr(Reading, "reader", counted)
    body = {**asked(**LONG), "stream_options": {"include_usage": True}}
    if path == RESPONSES:
        body = respond("Hi", max_output_tokens=400, ignore_eos=False)
    for more in ({}, {"stream": True}):
        sent = {name: value for name, value in body.items() if more or name != "stream_options"}
        answer = server.post(path, json={**sent, **more})
        assert (
            '"reasoning_tokens":' in answer.text and f"{len('Hm, 日本.'.encode())}" in answer.text
        )
        assert len(readers) == 1
        readers.clear()
