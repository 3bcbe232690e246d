"""Lines of OpenAI's batch files beside the server that answers their bodies."""

import json
from pathlib import Path
from typing import Any

import pytest
from serving.asking import CHAT, RESPONSES, SAMPLED, TEXT, asked
from starlette.testclient import TestClient

import mmspec
from mmspec.batch import Ledger, read_tasks, run_batch
from mmspec.batch.posted import Desk, Posted
from mmspec.batch.run import task_seed
from mmspec.errors import InputError
from mmspec.integrations.guided import JsonGuide

_OWN = ("id", "created", "created_at", "mmspec", "prompt_tokens_details", "input_tokens_details")
INPUT = {"input": "Say something.", "max_output_tokens": 24, **SAMPLED}


def answered(
    engine: mmspec.Engine, folder: Path, *lines: tuple[str, dict[str, Any]], **options: Any
) -> list[dict[str, Any]]:
    """The `response` of each."""
    path, out = folder / "requests.jsonl", folder / "out.jsonl"
    said = [
        {"custom_id": f"line {number}", "method": "POST", "url": url, "body": body}
        for number, (url, body) in enumerate(lines)
    ]
    path.write_text("\n".join(map(json.dumps, said)))
    with Ledger(out, run="r", fresh=True) as ledger:
        tasks = read_tasks([path], prompt=None)
        run_batch(engine, tasks, ledger, options=options, seed=3, model="nano")
    told = {line["custom_id"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert all(line["error"] is None and line["id"] == name for name, line in told.items())
    return [told[line["custom_id"]]["response"] for line in said]


def timeless(value: Any) -> Any:
    """Without what is another one each time, and the last bits of logits, which are the batch's."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in _OWN}
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return round(value, 9) if isinstance(value, float) else value


def test_a_line_has_the_body_that_the_server_answers(
    client: TestClient, engine: mmspec.Engine, tmp_path: Path
) -> None:
    lines = [
        (CHAT, asked()),
        (CHAT, asked("Hm?", n=2, logprobs=True, top_logprobs=2, temperature=0.5)),
        (CHAT, asked(stop=["e"], max_tokens=90, prediction={"type": "content", "content": "abc"})),
        (TEXT, {"prompt": ["One", "Two", [70, 71]], "max_tokens": 9, "logprobs": 1, **SAMPLED}),
        (RESPONSES, {**INPUT, "instructions": "Be brief.", "top_logprobs": 2, "store": True}),
        (CHAT, asked(n=0)),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}),
        (RESPONSES, {**INPUT, "max_output_tokens": 10**9}),
        (TEXT, {}),
    ]
    found = answered(engine, tmp_path, *[(url, {**b, "model": "gpt-4o"}) for url, b in lines])
    for (url, body), response in zip(lines, found, strict=True):
        own = client.post(url, json=body)
        assert timeless(response["body"]) == timeless(own.json())
        assert response["status_code"] == own.status_code
    statuses = [response["status_code"] for response in found]
    assert statuses == [200] * 5 + [400] * 4
    plain = engine.generate("Say something.", max_new_tokens=24, **SAMPLED)
    assert found[0]["body"]["choices"][0]["message"]["content"] == plain.text


def test_what_a_body_leaves_out_the_command_says(engine: mmspec.Engine, tmp_path: Path) -> None:
    own = {"messages": [{"role": "user", "content": "Hm?"}], "temperature": 1}
    common = {"temperature": 0, "max_new_tokens": 9, "ignore_eos": True}
    short, *wrong = answered(
        engine, tmp_path, (CHAT, own), (CHAT, {**own, "stream": True}), ("/v1/models", {}), **common
    )
    seed = task_seed(3, "line 0")
    alone = engine.generate("Hm?", **{**common, "temperature": 1}, seed=seed)
    assert short["body"]["choices"][0]["message"]["content"] == alone.text
    assert short["body"]["mmspec"]["seed"] == seed
    (asked_for,) = (
        Desk(engine, None).open("a", Posted("POST", CHAT, own), {"namespace": "x"}).requests
    )
    assert asked_for.namespace == "x"
    assert [response["status_code"] for response in wrong] == [400, 404]
    assert wrong[0]["body"]["error"]["param"] == "stream"


def test_each_text_of_a_line_has_a_seed_of_its_own(engine: mmspec.Engine, tmp_path: Path) -> None:
    """Else the same text would be answered twice the same. A body's own is each text's, as the
    server takes it."""
    asked = {"prompt": ["Hm?", "Hm?"], "max_tokens": 24, "ignore_eos": True, "temperature": 1}
    free, own = answered(engine, tmp_path, (TEXT, asked), (TEXT, {**asked, "seed": 7}))
    first = task_seed(3, "line 0")
    for response, seeds in ((free, (first, first + 1)), (own, (7, 7))):
        for choice, seed in zip(response["body"]["choices"], seeds, strict=True):
            options = {"max_new_tokens": 24, "ignore_eos": True, "temperature": 1, "raw": True}
            assert choice["text"] == engine.generate("Hm?", **options, seed=seed).text


def test_a_wrong_option_of_the_command_is_told_at_once(
    engine: mmspec.Engine, tmp_path: Path
) -> None:
    for wrong in ({"temprature": 1}, {"temperature": -1}):
        with pytest.raises(InputError, match="temp"):
            answered(engine, tmp_path, (CHAT, asked()), **wrong)


def test_what_a_body_says_wins_though_it_be_nothing(engine: mmspec.Engine, tmp_path: Path) -> None:
    guide = JsonGuide(engine).matching({"type": "array"})
    common = {"stop": ("e",), "n": 2, "logits_processors": [guide], "max_new_tokens": 24}
    said = {"messages": [{"role": "user", "content": "Hm?"}], "seed": 3, "temperature": 1}
    free = {**said, "stop": [], "n": 1, "response_format": {"type": "text"}}
    spoken = {"input": "Hm?", "text": {"format": {"type": "text"}}, "stop": [], **said}
    del spoken["messages"]
    chat, response = answered(engine, tmp_path, (CHAT, free), (RESPONSES, spoken), **common)
    alone = engine.generate("Hm?", max_new_tokens=24, seed=3, temperature=1).text
    assert [choice["message"]["content"] for choice in chat["body"]["choices"]] == [alone]
    assert response["body"]["output"][0]["content"][0]["text"] == alone
    assert response["body"]["usage"]["output_tokens"] == 24  # of one text: a response has no n


def test_of_two_lines_of_one_id_the_first_is_answered_and_the_second_told(
    engine: mmspec.Engine, tmp_path: Path
) -> None:
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": asked()}
    path, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    path.write_text("\n".join([json.dumps(line)] * 2))
    with Ledger(out, run="r") as ledger:
        tally = run_batch(engine, read_tasks([path], prompt=None), ledger, options={}, seed=3)
    (told,) = map(json.loads, out.read_text().splitlines())
    assert told["response"]["status_code"] == 200
    assert (tally.num_answered, tally.num_failed) == (1, 1)
    assert f"{path}, line 2: the id 'a' was there before" in tally.failures[0]


def test_a_system_prompt_of_its_own_wins(engine: mmspec.Engine, tmp_path: Path) -> None:
    common = {"temperature": 0, "max_new_tokens": 9, "ignore_eos": True, "system": "Be brief."}
    question = {"role": "user", "content": "Hm?"}
    chat = [{"role": "system", "content": "Be long."}, question]
    bodies = ({"messages": chat}, {"messages": [question]})
    found = answered(
        engine, tmp_path, *((CHAT, b) for b in bodies), (TEXT, {"prompt": "Hm?"}), **common
    )
    path, out = tmp_path / "p.jsonl", tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"prompt": chat}))
    with Ledger(out, run="r") as ledger:
        run_batch(engine, read_tasks([path], prompt=None), ledger, options=common, seed=3)
    own = {**common, "system": None}
    long, brief = engine.generate(chat, **own).text, engine.generate("Hm?", **common).text
    assert json.loads(out.read_text())["text"] == long != brief
    told = [response["body"]["choices"][0] for response in found]
    assert [told[0]["message"]["content"], told[1]["message"]["content"]] == [long, brief]
    assert told[2]["text"] == engine.generate("Hm?", **own, raw=True).text
