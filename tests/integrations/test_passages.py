"""Where a pipeline's passages go: the prompt, or the drafter alone; never the prompt twice."""

from typing import Any

import pytest
from integrations.frameworks import saying

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.inputs.passages import Passage
from mmspec.integrations.guided import JsonGuide
from mmspec.integrations.options import component_request, request_options
from mmspec.integrations.passages import with_passages

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A fox\n ran. Who?"}]},
]


def in_prompt(passages: object, placement: Any) -> list[bool]:
    placed = with_passages({"passages": passages}, MESSAGES, placement=placement)
    return [passage.in_prompt for passage in placed["passages"]]  # type: ignore[attr-defined]


def test_auto_writes_only_what_the_messages_do_not_hold() -> None:
    texts = ["A fox ran.", "An owl slept."]  # the first stands there, in two lines
    assert in_prompt(texts, "auto") == [False, True]
    assert in_prompt(texts, "prompt") == [True, True]
    assert in_prompt(texts, "drafter") == [False, False]
    own = with_passages({"passages": texts, "placement": "drafter"}, MESSAGES, placement="auto")
    assert [one.in_prompt for one in own["passages"]] == [False, False]  # type: ignore[attr-defined]
    assert in_prompt([Passage("An owl slept.", in_prompt=False)], "prompt") == [False]


def test_a_request_without_passages_is_left_alone() -> None:
    assert with_passages({"seed": 1}, MESSAGES, placement="auto") == {"seed": 1}
    assert with_passages({"passages": None}, "text", placement="auto") == {}
    assert with_passages({"passages": ["", "  "]}, "text", placement="auto") == {}


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="placement='both'"):
        with_passages({}, "text", placement="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected a text, or mmspec\.Passage"):
        with_passages({"passages": [3]}, "text", placement="auto")


@pytest.mark.parametrize("placement", ["prompt", "drafter"])
def test_a_passage_is_drafted_from_wherever_it_goes(engine: Engine, placement: Any) -> None:
    passage = "The ship of Ulriko left Tandor with 80 barrels of oil on a Monday."
    question = "Say it."
    script = request_options(saying(engine, passage))
    options = with_passages({"passages": [passage]}, question, placement=placement)
    told = engine.generate(question, temperature=0, **options, **script)
    bare = engine.generate(question, temperature=0, **script)
    assert told.text == bare.text == passage
    assert told.stats.steps < bare.stats.steps / 2, (told.stats.steps, bare.stats.steps)
    grew = told.stats.prompt_tokens - bare.stats.prompt_tokens
    assert (grew > len(passage)) == (placement == "prompt") and (grew == 0) == (
        placement == "drafter"
    )


A = {"type": "object", "properties": {"a": {}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {}}, "required": ["b"]}
OPEN = {"type": "object", "properties": {"b": {}}, "additionalProperties": True}
NESTED = {"type": "object", "properties": {"a": OPEN}}
EITHER = {"anyOf": [A, B]}
COMPOSED = (
    {"allOf": [A, B]},
    {**A, "anyOf": [B]},
    {"items": {**A, **EITHER}},
    {**A, "$ref": "#/$defs/b", "$defs": {"b": B}},
)
CLOSED = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "followed"),
    [
        (NESTED, {**NESTED, **CLOSED}),
        (EITHER, {"anyOf": [{**A, **CLOSED}, {**B, **CLOSED}]}),
        *((one, one) for one in COMPOSED),
    ],
)
def test_a_component_s_objects_have_no_other_keys_than_their_schemas_name(
    engine: Engine, given: dict[str, Any], followed: dict[str, Any]
) -> None:
    asked: list[Any] = []

    class Guide(JsonGuide):
        def matching(self, schema: Any = None) -> Any:
            asked.append(schema)
            return lambda ids, scores: scores

    component_request("Who?", {"json_schema": given}, placement="auto", guide=Guide(engine))
    assert asked == [followed]
