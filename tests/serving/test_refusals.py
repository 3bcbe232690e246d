"""What a client may not do, and how it is told."""

import json
import logging
import sys
from typing import Any

import pytest
from serving.asking import CHAT, RESPONSES, TEXT, asked
from starlette.testclient import TestClient

import mmspec
from mmspec.errors import MissingExtraError
from mmspec.serving import ServerSettings, create_app
from mmspec.serving.errors import as_api_error


def image(**part: Any) -> dict[str, Any]:
    return asked(messages=[{"role": "user", "content": [part]}])


TOOL = {"type": "function", "function": {"name": "f"}}
_HALF = {"name": "f", "arguments": json.dumps({"a": "\ud83d"})}
HALF = {"role": "assistant", "tool_calls": [{"function": _HALF}]}


def nested() -> dict[str, Any]:
    """A tool with objects in objects, so many that JSON is read yet and they are not."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(450 if sys.version_info < (3, 12) else 600):
        schema = {"type": "object", "properties": {"a": schema}}
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


@pytest.mark.parametrize(
    ("body", "told", "param"),
    [
        ([], "expected a JSON object", None),
        ({}, "a list of one or more messages", "messages"),
        (asked(messages=[]), "a list of one or more messages", "messages"),
        (asked(messages=[3]), "messages[0]", "messages[0]"),
        (asked(messages=[{"role": "user", "nmae": "b"}]), "unknown field 'nmae'", "nmae"),
        (asked(messages=[{"role": "user", "content": [3]}]), '"text": "..."', None),
        (asked(messages=[{"tool_calls": [3]}]), "a call of a function", None),
        (asked(messages=[{"tool_calls": [{"function": 3}]}]), "a call of a function", None),
        (asked(messages=[{"role": "king", "content": "a"}]), "role 'king'", None),
        (asked(messages=[{"role": "user", "content": 3}]), "a text or a list of parts", None),
        (asked(temperature=-1), "temperature=-1", "temperature"),
        (asked(temperature="hot"), "expected a number", "temperature"),
        (asked(temperature=1e-40), "temperature=1e-40", "temperature"),
        (asked(presence_penalty=1e300), "presence_penalty=1e+300", "presence_penalty"),
        (asked(repetition_penalty=1e-300), "repetition_penalty=1e-300", "repetition_penalty"),
        (asked(logit_bias={"5": 1e300}), "logit_bias={5: 1e+300}", "logit_bias"),
        (asked(moderation={"model": "a"}), "moderates", "moderation"),
        (asked(top_p=0), "top_p=0", "top_p"),
        (asked(max_tokens=0), "max_tokens=0: expected", "max_tokens"),
        (asked(max_tokens=10**6), "or set max_tokens <=", None),
        (asked(max_tokens=40000), "context holds 32768", None),
        (asked(max_tokens=1.5), "expected a whole number", "max_tokens"),
        (asked(max_tokens=True), "expected a whole number", "max_tokens"),
        (asked(max_completion_tokens=3), "give one", "max_tokens"),
        (
            asked(max_tokens=None, max_completion_tokens=0),
            "max_completion_tokens: got 0",
            "max_completion_tokens",
        ),
        (asked(n=5), "at most 4", "n"),
        (asked(stop=[""]), "a list of texts", "stop"),
        (asked(stop=["a"] * 17), "at most 16", "stop"),
        (asked(logit_bias={"a": 1}), "token ids", "logit_bias"),
        (asked(logit_bias={"99999": 1}), "vocabulary", None),
        (asked(top_logprobs=2), "logprobs=true", "top_logprobs"),
        (asked(logprobs=True, top_logprobs=21), "0 to 20", "top_logprobs"),
        (asked(temprature=1), "did you mean 'temperature'?", "temprature"),
        (asked(functions=[TOOL]), "expected tools", "functions"),
        (asked(tools=[{"name": "f"}]), '"function"', "tools"),
        (asked(tools=[TOOL], tool_choice="maybe"), "'required', 'f'", "tool_choice"),
        (asked(tools=[TOOL], tool_choice={"type": "function"}), "'required'", "tool_choice"),
        (asked(tool_choice="required"), "of given tools", "tool_choice"),
        (asked(tools=[TOOL], tool_choice="required"), "ignore_eos", "tool_choice"),
        (
            asked(tools=[TOOL], tool_choice="f", ignore_eos=False, response_format={"type": "xml"}),
            "'xml'",
            "response_format",
        ),
        (
            asked(
                tools=[TOOL],
                tool_choice="f",
                ignore_eos=False,
                response_format={"type": "json_object"},
            ),
            "does not go with tools",
            "response_format",
        ),
        (asked(tools=[nested()], tool_choice="f"), "nested too deep", "tools"),
        (asked(tools=[nested()]), "nested too deep", None),
        (asked(tools=[TOOL]), "chat template does not use them", None),
        (asked(messages=[HALF, {"role": "tool", "content": ""}]), "a lone surrogate", None),
        (asked(tools=[TOOL], parallel_tool_calls=False), "how many", "parallel_tool_calls"),
        (asked(response_format={"type": "xml"}), "'xml'", "response_format"),
        (asked(response_format={"type": "json_schema"}), "json_schema", "response_format"),
        (asked(response_format={"type": "json_object"}), "ignore_eos", "response_format"),
        (asked(prediction="a"), "expected an object", "prediction"),
        (asked(prediction={"type": "content"}), '"content": "..."', "prediction"),
        (asked(stream_options={"include_usage": True}), "stream=true", "stream_options"),
        (asked(stream_options={"usage": True}, stream=True), "unknown field 'usage'", "usage"),
        (asked(modalities=["audio"]), "expected ['text']", "modalities"),
        (asked(chat_template_kwargs={"chat_template": "x"}), "switches", "chat_template_kwargs"),
        (asked(passages=[{"txt": "a"}]), "passages", "passages"),
        (asked(passages=[{"text": "a", "path": "b"}]), "unknown field 'path'", "path"),
        (asked(speculate="always"), "speculate='always'", "speculate"),
        (asked(speculate=1), "speculate=1", "speculate"),
        (image(type="input_audio", input_audio={}), "input_audio", None),
        (image(type=[]), "a text as its type", None),
        (image(type="file", file={}), "'file'", None),
    ],
)  # fmt: skip
def test_a_mistake_is_a_400_that_says_what_was_expected(
    client: TestClient, body: Any, told: str, param: str | None
) -> None:
    for stream in (False, True):
        if isinstance(body, dict) and "stream_options" not in body:
            body = {**body, "stream": stream}
        response = client.post(CHAT, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert told in error["message"] and error["type"] == "invalid_request_error"
        assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": []}, "a list of tokens"),
        ({"prompt": ["a", 3]}, "a list of tokens"),
        ({"prompt": [-1]}, "a list of tokens"),
        ({"prompt": [99999]}, "vocabulary"),
        ({"prompt": ["a"] * 5}, "at most 4 answers"),
        ({"prompt": "a", "echo": True}, "not said again"),
        ({"prompt": "a", "suffix": "b"}, "fills in"),
        ({"prompt": "a", "best_of": 3}, "all samples"),
        ({"prompt": "a", "logprobs": 30}, "0 to 20"),
        ({"prompt": "a", "messages": []}, "unknown field 'messages'"),
    ],
)
def test_so_it_is_with_completions(client: TestClient, body: Any, told: str) -> None:
    response = client.post(TEXT, json=body)
    assert response.status_code == 400 and told in response.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["image_url", "video_url"])
@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd", "ftp://a/b.png", "~/a.png", ""]
)
def test_no_path_of_this_machine_is_read(client: TestClient, kind: str, url: str) -> None:
    for given in (url, {"url": url}):
        response = client.post(CHAT, json=image(**{"type": kind, kind: given}))
        assert response.status_code == 400
        assert "expected a data: URL" in response.json()["error"]["message"]


def test_a_part_names_no_file_by_another_key(client: TestClient) -> None:
    for part in (
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image_url", "path": "/etc/passwd"},
        {"type": "text", "text": "a", "image": "/etc/passwd"},
    ):
        response = client.post(CHAT, json=image(**part))
        if part["type"] == "text":  # what is beside the text is not looked at
            assert response.status_code == 200
        else:
            assert response.status_code == 400


def test_nothing_is_fetched_unless_allowed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmspec.inputs.sources.download", lambda *_, **__: pytest.fail("fetched"))
    for url in ("http://169.254.169.254/latest", "HTTPS://example.org/a.png"):
        response = client.post(CHAT, json=image(type="image_url", image_url={"url": url}))
        assert response.status_code == 400
        told = response.json()["error"]["message"]
        assert "inputs.allow_http=true" in told and "send it as a data: URL" in told
        assert "overrides" not in told and "mmspec.load" not in told


def test_images_are_counted_and_videos_are_read_as_such(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", max_media=2)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with TestClient(create_app(engine, settings)) as client:
        for roles, told in (
            (["user"] * 2, "is not an image"),
            (["user", "assistant", "user"], "got 3 images"),
        ):
            messages = [{"role": role, "content": [part]} for role in roles]
            response = client.post(CHAT, json=asked(messages=messages))
            assert response.status_code == 400
            assert told in response.json()["error"]["message"]
        item = {"type": "input_image", "image_url": part["image_url"]["url"]}  # type: ignore[index]
        items = [{"role": "user", "content": [item] * 3}]
        response = client.post(RESPONSES, json={"input": items, "max_output_tokens": 1})
        assert response.status_code == 400 and "got 3 images" in response.json()["error"]["message"]
        video = {"type": "video_url", "video_url": {"url": "data:image/gif;base64,AAAA"}}
        response = client.post(CHAT, json=image(**video))
        assert response.status_code == 400 and "got 1 video," in response.json()["error"]["message"]


def test_a_broken_image_is_the_client_s_own_mistake(client: TestClient) -> None:
    for url in ("data:image/png;base64,AAAA", "data:image/png;base64,?", "data:image/png"):
        response = client.post(CHAT, json=image(type="image_url", image_url={"url": url}))
        assert response.status_code == 400, url


def test_bodies_have_a_size_and_are_json(client: TestClient) -> None:
    large = client.post(CHAT, json=asked("a" * 2**20))
    assert large.status_code == 413 and "1048576 bytes" in large.json()["error"]["message"]
    for data in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        assert client.post(CHAT, content=data).status_code == 400


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(asked(user=float("nan"))).encode(),
        json.dumps(asked(user=float("-inf"))).encode(),
        json.dumps(asked(stop="\ud83d")).encode(),
        json.dumps(asked(stop="\ud83d")).encode("utf-16"),
        json.dumps(asked(stop="\ud83d"), ensure_ascii=False).encode("utf-16", "surrogatepass"),
        json.dumps(asked(stop="\ud83d"), ensure_ascii=False).encode("utf-8", "surrogatepass"),
        json.dumps(asked(stop="é"), ensure_ascii=False).encode("latin-1"),
    ],
)
def test_a_body_is_json_in_utf_8_alone(client: TestClient, data: bytes) -> None:
    response = client.post(CHAT, content=data)
    assert response.status_code == 400 and "no JSON" in response.json()["error"]["message"]
    told = json.dumps(asked("\U0001f388"), ensure_ascii=True).encode("utf-8-sig")
    assert client.post(CHAT, content=told).status_code == 200


def test_what_openai_s_client_may_send_has_an_answer(client: TestClient) -> None:
    """Each of its fields is followed, of no matter, or refused for what it is."""
    openai = pytest.importorskip("openai")
    from openai.types import completion_create_params as of_text
    from openai.types.chat import completion_create_params as of_chat
    from openai.types.responses import response_create_params as of_response

    assert openai
    for path, params, begun in (
        (CHAT, of_chat.CompletionCreateParamsBase, asked()),
        (TEXT, of_text.CompletionCreateParamsBase, {"prompt": "a", "max_tokens": 1}),
        (RESPONSES, of_response.ResponseCreateParamsBase, {"input": "a", "max_output_tokens": 1}),
    ):
        for name in params.__annotations__:
            body = {**begun, name: begun.get(name, {"no": "such"})}
            error = client.post(path, json=body).json().get("error") or {}
            assert f"unknown field {name!r}" not in error.get("message", "")


def test_what_an_assistant_refused_to_say_is_a_part_of_the_chat(client: TestClient) -> None:
    refusal = [{"type": "refusal", "refusal": "No."}]
    # As the client gives an answer back.
    said = {"role": "assistant", "refusal": "No.", "annotations": [], "tool_calls": None}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "a"}, said]
    messages.append({"role": "user", "content": "b"})
    answers = []
    for content in (refusal, "No."):
        messages[1]["content"] = content
        answers.append(client.post(CHAT, json=asked(messages=messages)).json())
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[1]


def test_no_page_of_another_site_asks_unseen(client: TestClient) -> None:
    """A browser sends such bodies without asking whether it may."""
    data = json.dumps(asked()).encode()
    headers = {"Origin": "https://elsewhere.example", "Content-Type": "text/plain"}
    refused = client.post(CHAT, content=data, headers=headers)
    assert refused.status_code == 415
    assert "application/json" in refused.json()["error"]["message"]
    for given in (
        {"Content-Type": "text/plain"},
        {"Origin": "app://own", "Content-Type": "application/json; charset=utf-8"},
    ):
        assert client.post(CHAT, content=data, headers=given).status_code == 200


def test_other_models_and_routes_are_not_there(client: TestClient) -> None:
    wrong = client.post(CHAT, json=asked(model="gpt-4o"))
    assert wrong.status_code == 404 and wrong.json()["error"]["code"] == "model_not_found"
    assert client.post(CHAT, json=asked(model="nano")).status_code == 200
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["nano"]
    assert client.get("/v1/models/nano").json()["id"] == "nano"
    assert client.get("/v1/models/other/one").status_code == 404
    assert client.get("/v1/embeddings").json()["error"]["type"] == "invalid_request_error"
    assert client.get(CHAT).status_code == 405


def test_a_time_that_is_over_is_not_asked_for_again(engine: mmspec.Engine) -> None:
    """OpenAI's client asks twice more, unless it is told."""
    with TestClient(create_app(engine, ServerSettings(name="nano", timeout_s=0.05))) as client:
        late = client.post(CHAT, json=asked(max_tokens=3000))
    assert late.status_code == 504 and late.headers["x-should-retry"] == "false"


def test_keys_open_and_keep_apart(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", api_keys=("first", "second"))
    with TestClient(create_app(engine, settings)) as client:
        for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "first"}):
            for response in (
                client.post(CHAT, json=asked(), headers=headers),
                client.get("/v1/models", headers=headers),
            ):
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        cached = []
        for key in ("first", "first", "second"):
            body = asked("A text of one key's own, which is kept for it alone.")
            answer = client.post(CHAT, json=body, headers={"Authorization": f"Bearer {key}"})
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        # Chat templates begin alike, but that is not looked up across keys either.
        assert cached[1] > cached[0] == cached[2] == 0


def test_pages_of_named_origins_may_ask(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", cors_origins=("https://here.example",))
    with TestClient(create_app(engine, settings)) as client:
        for origin, is_allowed in (("https://here.example", True), ("https://no.example", False)):
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
            }
            response = client.options(CHAT, headers=headers)
            assert (response.headers.get("access-control-allow-origin") == origin) is is_allowed


def test_the_log_has_a_line_a_request_and_no_word_of_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mmspec")
    answer = client.post(CHAT, json=asked("A secret question.")).json()
    client.post(CHAT, json=asked("A secret question.", stream=True))
    client.post(CHAT, json=asked("A secret question.", temperature=-1))
    client.post(CHAT, json=asked("A secret question.", max_tokens=1))
    lines = [record.getMessage() for record in caplog.records]
    codes = (200, 200, 400, 200)
    assert [line.split(" · ")[0] for line in lines] == [f"POST {CHAT} {code}" for code in codes]
    assert "24 tokens" in lines[0] and "24 tokens" in lines[1]
    assert "1 token, 1.00 a step" in lines[3]
    said = answer["choices"][0]["message"]["content"]
    assert not any("secret" in line or said in line for line in lines)


@pytest.mark.parametrize(
    ("audio", "told"),
    [
        ({"data": "UklGRg==", "format": "wav"}, "no audio processor"),
        ({"data": "/etc/passwd", "format": "wav"}, "no audio processor"),
        ({"url": "/etc/passwd"}, '"input_audio": {"data"'),
        ("/etc/passwd", '"input_audio": {"data"'),
    ],
)
def test_audio_is_data_alone_and_a_model_that_cannot_hear_says_so(
    client: TestClient, audio: object, told: str
) -> None:
    response = client.post(CHAT, json=image(type="input_audio", input_audio=audio))
    assert response.status_code == 400
    assert told in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        asked("half of \ud83d"),
        asked(passages=[{"text": "a", "id": "\ud800"}]),
        asked(**{"\udfff": 1}),
    ],
)
def test_half_a_character_anywhere_is_a_400(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post(CHAT, content=json.dumps(body))
    assert response.status_code == 400
    assert "surrogates not allowed" in response.json()["error"]["message"]


def test_a_whole_character_in_two_halves_is_read(client: TestClient) -> None:
    assert r"\ud83e\udd8a" in json.dumps(asked("A \U0001f98a."))
    assert client.post(CHAT, content=json.dumps(asked("A \U0001f98a."))).status_code == 200


def test_what_needs_a_package_that_is_not_there_is_no_failure_of_the_server() -> None:
    told = as_api_error(MissingExtraError("pip install 'mmspec[audio]', or convert it to WAV"))
    assert told.status == 400 and "convert it" in told.message
