from prometheus_client.parser import text_string_to_metric_families
from serving.asking import CHAT, asked
from starlette.testclient import TestClient

import mmspec
from mmspec.serving import ServerSettings, create_app


def values(client: TestClient) -> dict[tuple[str, str], float]:
    """(name, its label) -> value"""
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    return {
        (
            sample.name,
            ",".join(v for k, v in sorted(sample.labels.items()) if k != "le"),
        ): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def test_what_was_done_is_counted(engine: mmspec.Engine) -> None:
    with TestClient(create_app(engine, ServerSettings(name="nano"))) as client:
        answers = [
            client.post(CHAT, json=asked(n=2, speculate=True, reuse=False)).json(),
            client.post(CHAT, json=asked("aaaa aaaa aaaa", logit_bias={"70": 100})).json(),
        ]
        client.post(CHAT, json=asked(stream=True))
        client.post(CHAT, json=asked(top_p=0))
        found = values(client)
    assert found["mmspec_requests_total", f"{CHAT},200"] == 3
    assert found["mmspec_requests_total", f"{CHAT},400"] == 1
    assert found["mmspec_generated_tokens_total", ""] == 4 * 24
    prompts = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert found["mmspec_prompt_tokens_total", ""] == sum(prompts) + prompts[0]
    assert 0 < found["mmspec_steps_total", ""] < 4 * 23, "a text of one letter is drafted"
    accepted = found["mmspec_accepted_tokens_total", "prompt_lookup"]
    assert 10 < accepted <= found["mmspec_drafted_tokens_total", "prompt_lookup"]
    assert accepted == 4 * 23 - found["mmspec_steps_total", ""]
    assert found["mmspec_tokens_per_step_count", ""] == 4
    for name in ("time_to_first_token", "request", "queue", "time_per_output_token"):
        assert found[f"mmspec_{name}_seconds_count", ""] == 3
        assert found[f"mmspec_{name}_seconds_sum", ""] > 0
    assert found["mmspec_running_requests", ""] == found["mmspec_waiting_requests", ""] == 0


def test_two_servers_in_a_process_count_for_themselves(
    engine: mmspec.Engine, client: TestClient
) -> None:
    client.post(CHAT, json=asked())
    with TestClient(create_app(engine, ServerSettings(name="nano"))) as other:
        assert values(other)["mmspec_generated_tokens_total", ""] == 0
