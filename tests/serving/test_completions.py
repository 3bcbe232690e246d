from serving.asking import SAMPLED, TEXT, events
from starlette.testclient import TestClient

import mmspec


def test_prompts_go_in_as_they_are(client: TestClient, engine: mmspec.Engine) -> None:
    texts = ["abc abd", "red square, blue"]
    body = {"prompt": texts, "max_tokens": 9, "n": 2, **SAMPLED}
    answer = client.post(TEXT, json=body).json()
    plain = [engine.generate(t, raw=True, n=2, max_new_tokens=9, **SAMPLED) for t in texts]
    expected = [sample.text for result in plain for sample in result.samples]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 36
    ids = [engine.prepare(text, raw=True).prompt.token_ids.tolist() for text in texts]
    for prompt, first in ((ids, 0), (ids[1], 2)):
        by_tokens = client.post(TEXT, json={**body, "prompt": prompt}).json()
        assert [choice["text"] for choice in by_tokens["choices"]] == expected[first:]


def test_a_stream_adds_up_to_the_whole_answer(client: TestClient) -> None:
    body = {"prompt": ["abc", "abd"], "max_tokens": 9, "logprobs": 2, **SAMPLED}
    whole = client.post(TEXT, json=body).json()
    stream_options = {"include_obfuscation": False}
    chunks = events(
        client.post(TEXT, json={**body, "stream": True, "stream_options": stream_options}).text
    )
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for expected in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == expected["index"]]
        assert "".join(one["text"] for one in own) == expected["text"]
        assert own[-1]["finish_reason"] == "length"
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            found = [value for one in own for value in one["logprobs"][name]]
            assert found == expected["logprobs"][name] and len(found) == 9


def test_a_prediction_is_a_text(client: TestClient) -> None:
    body = {"prompt": "abc", "max_tokens": 9, "n": 4, **SAMPLED}
    plain = client.post(TEXT, json=body).json()
    helped = client.post(TEXT, json={**body, "prediction": "xyz"}).json()
    assert helped["choices"][0]["text"] == plain["choices"][0]["text"]
    assert sum(helped["usage"]["completion_tokens_details"].values()) == 4 * 3
