"""How much a model is to think: told to its chat template, by the variables that this reads."""

from dataclasses import replace
from typing import Any

import pytest
from integrations.frameworks import TOOL_TEMPLATE
from serving.asking import CHAT, RESPONSES, asked
from serving.test_responses import respond
from starlette.testclient import TestClient

import mmspec
from mmspec.inputs.template import variables

LEVEL = "{% if not reasoning_effort is defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
LEVEL += "Effort: {{ reasoning_effort }}."
SWITCH = "{{ 'No thoughts.' if enable_thinking is defined and not enable_thinking }}"
OTHER_SWITCH = "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
OTHER_SWITCH += "{{ 'Think.' if thinking else 'No thoughts.' }}"
NO_SWITCH = (
    "{# enable_thinking #}{% for m in messages %}{{ m.thinking }}{% endfor %}reasoning_effort"
)


@pytest.mark.parametrize(
    ("template", "effort", "told"),
    [
        (LEVEL, "high", "Effort: high."),
        (LEVEL, "minimal", "Effort: minimal."),
        (LEVEL, None, "Effort: medium."),
        (SWITCH, "none", "No thoughts."),
        (SWITCH, "low", ""),
        (OTHER_SWITCH, "medium", "Think."),
        (OTHER_SWITCH, "minimal", "No thoughts."),
        (OTHER_SWITCH, None, "No thoughts."),
        (SWITCH + LEVEL, "none", "No thoughts.Effort: medium."),
        (SWITCH + LEVEL, "low", "Effort: low."),
        (NO_SWITCH, "low", None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_an_effort_reaches_the_template_or_is_refused(
    client: TestClient,
    engine: mmspec.Engine,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    template: str,
    effort: str | None,
    told: str | None,
) -> None:
    prepare, prompts = engine.prepare, list[str]()
    own: dict[str, Any] = {"chat_template": template + TOOL_TEMPLATE}

    def prepared(request: mmspec.Request) -> mmspec.Request:
        arguments = {**(request.template_arguments or {}), **own}
        made = prepare(replace(request, template_arguments=arguments))
        prompts.append(str(made.prompt.text))  # type: ignore[union-attr]
        return made

    monkeypatch.setattr(engine, "prepare", prepared)
    monkeypatch.setattr(engine.inputs, "template_source", lambda *_: own["chat_template"])
    body = asked("Hi", reasoning_effort=effort, max_tokens=2)
    if path == RESPONSES:
        body = respond("Hi", reasoning={"effort": effort, "summary": "auto"}, max_output_tokens=2)
    answer = client.post(path, json=body)
    if told is None:
        error = answer.json()["error"]
        name = "reasoning_effort" if path == CHAT else "reasoning.effort"
        assert (answer.status_code, error["param"]) == (400, name) and "reads none" in error[
            "message"
        ]
        return
    assert answer.status_code == 200, answer.text
    assert prompts == [f"{told}<s><|user|>Hi<|assistant|>"]
    if path == CHAT:  # what is said of the variables themselves goes before
        client.post(path, json={**body, "chat_template_kwargs": {"enable_thinking": True}})
        assert "enable_thinking" not in template or "No thoughts" not in prompts[-1]


def test_what_a_broken_template_reads_is_nothing() -> None:
    assert variables("{{ thinking }}{% if %}") >= {"thinking"}
    assert variables("{{ 'thinking }}") == frozenset()
