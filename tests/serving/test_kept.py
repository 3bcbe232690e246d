"""Responses that are kept: told again, gone on from, deleted, and bounded."""

import json
import tracemalloc
from typing import Any

import pytest
from serving.asking import RESPONSES
from serving.test_responses import respond, streamed, text_of
from starlette.testclient import TestClient

import mmspec
from mmspec.errors import ConfigError
from mmspec.serving import ServerSettings, create_app
from mmspec.serving.kept import KeptResponses


def status_of(client: TestClient, name: str, **headers: str) -> int:
    return client.get(f"{RESPONSES}/{name}", headers=headers).status_code


def test_a_response_goes_on_from_one_that_is_kept(client: TestClient) -> None:
    """As if all that was said before were its input; instructions are each one's own."""
    first = client.post(RESPONSES, json=respond("Hi", store=True, instructions="Be brief.")).json()
    items: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, *first["output"]]
    for more in ("Why?", [{"role": "user", "content": "How?"}]):
        body = respond(more, store=True, previous_response_id=first["id"])
        made = client.post(RESPONSES, json=body).json()
        assert made["previous_response_id"] == first["id"] and made["store"] is True
        items += [{"role": "user", "content": more}] if isinstance(more, str) else more
        whole = client.post(RESPONSES, json=respond(items)).json()
        assert text_of(made) == text_of(whole)
        assert made["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
        end = streamed(client, body)[-1]["response"]
        assert text_of(end) == text_of(made)
        assert client.get(f"{RESPONSES}/{end['id']}").json() == end
        items, first = [*items, *made["output"]], made
    wrong = respond([3], previous_response_id=first["id"])
    assert client.post(RESPONSES, json=wrong).json()["error"]["param"] == "input[0]"


def test_what_is_kept_is_told_until_it_is_deleted(client: TestClient) -> None:
    for store in (None, False):
        made = client.post(RESPONSES, json=respond(store=store)).json()
        assert status_of(client, made["id"]) == 404 and made["store"] is False
    made = client.post(RESPONSES, json=respond(store=True)).json()
    where = f"{RESPONSES}/{made['id']}"
    assert client.get(where).json() == made
    deleted = client.delete(where)
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    asked = client.post(RESPONSES, json=respond(previous_response_id=made["id"]))
    for answer in (client.get(where), client.delete(where), asked):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "response_not_found")
        assert "store=true" in error["message"]
    assert error["param"] == "previous_response_id"
    page = client.get("/metrics").text
    assert 'path="/v1/responses",status="404"' in page and made["id"] not in page


def test_each_key_finds_its_own_responses_alone(engine: mmspec.Engine) -> None:
    settings = ServerSettings(name="nano", api_keys=("mine", "another"))
    one, other = ({"Authorization": f"Bearer {key}"} for key in settings.api_keys)
    with TestClient(create_app(engine, settings)) as client:
        made = client.post(RESPONSES, json=respond(store=True), headers=one).json()
        assert status_of(client, made["id"], **one) == 200
        assert status_of(client, made["id"], **other) == 404
        assert status_of(client, made["id"]) == 401
        body = respond(previous_response_id=made["id"])
        assert client.post(RESPONSES, json=body, headers=other).status_code == 404


@pytest.mark.parametrize(
    ("bound", "num_kept"),
    [
        ({"max_kept_responses": 2}, 2),
        ({"max_kept_responses": 0}, 0),
        ({"max_kept_bytes": 25_000}, 2),
        ({"max_kept_bytes": 30}, 0),
    ],
)
def test_the_oldest_make_room(engine: mmspec.Engine, bound: dict[str, int], num_kept: int) -> None:
    with TestClient(create_app(engine, ServerSettings(name="nano", **bound))) as client:  # type: ignore[arg-type]
        body = respond(store=True)
        names = [client.post(RESPONSES, json=body).json()["id"] for _ in range(4)]
        found = [status_of(client, name) == 200 for name in names]
        assert found == [False] * (4 - num_kept) + [True] * num_kept


def test_what_is_too_large_drives_out_no_other(engine: mmspec.Engine) -> None:
    with TestClient(
        create_app(engine, ServerSettings(name="nano", max_kept_bytes=20_000))
    ) as client:
        body = respond(store=True)
        small = client.post(RESPONSES, json=body).json()["id"]
        unseen = {"type": "reasoning", "encrypted_content": "x" * 20_000}
        items = [unseen, {"role": "user", "content": "Hi"}]
        large = client.post(RESPONSES, json=respond(items, store=True)).json()["id"]
        assert status_of(client, small) == 200 and status_of(client, large) == 404


def test_what_is_kept_is_no_larger_than_the_bound_says() -> None:
    """Also of many small values, which take many times their text."""
    settings = ServerSettings(max_kept_bytes=2_000_000)
    kept, text = KeptResponses(settings), json.dumps([{}] * 5_000)
    tracemalloc.start()
    try:
        for number in range(20):
            kept.put("", {"id": f"resp_{number}"}, json.loads(text))
        assert tracemalloc.get_traced_memory()[0] < 1.1 * settings.max_kept_bytes
        kept.get("", "resp_18")
    finally:
        tracemalloc.stop()


def test_a_bound_below_nothing_is_refused() -> None:
    for name in ("max_kept_responses", "max_kept_bytes"):
        with pytest.raises(ConfigError, match=f"{name}=-1: expected 0 or more"):
            ServerSettings(**{name: -1})  # type: ignore[arg-type]
