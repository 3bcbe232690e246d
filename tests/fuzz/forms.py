"""JSON of random schemas, in vocabularies of several kinds: always of the form, and the same text
with drafts as without."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.integrations.guided import JsonGuide
from mmspec.requests import Request

from .cases import wanted
from .chats import QUESTIONS
from .drafting import Truths
from .judge import differences, leaks, rounding_of, watched
from .report import Refused, Report, may_refuse
from .speakers import SEEING, WRITING, asked_plainly, draw_engine, plain_speaker

WORDS = ("a", "name", "it's", 'quo"ted', "naïve", "two words", "0", "\\", "é😀", "x" * 30)


@cache
def guide_of(name: str) -> JsonGuide:
    return JsonGuide(plain_speaker(name))


def play_forms(draw: random.Random, report: Report, folder: Path) -> None:
    if not find_spec("llguidance"):
        raise Refused("JSON by a schema needs llguidance")
    name = draw.choice([*WRITING, *WRITING, *SEEING])
    plain, truths = plain_speaker(name), Truths()
    with may_refuse(InputError):
        guide = guide_of(name)
        guide.matching()
        engine, report.title = draw_engine(draw, name, truths)
    with watched([engine]) as caches:
        for number in range(draw.choice([1, 2])):
            report.begin(number, "schemas")
            report.wrong += _played(draw, engine, plain, guide, truths, report)
        report.wrong += leaks(engine, caches)


def _played(
    draw: random.Random,
    engine: Engine,
    plain: Engine,
    guide: JsonGuide,
    truths: Truths,
    report: Report,
) -> Iterator[str]:
    asked: list[tuple[dict[str, Any], Request, int | None]] = []
    for _ in range(draw.randint(1, 4)):
        schema = draw_schema(draw, depth=draw.choice([1, 2, 3]))
        try:
            processor = guide.matching(schema)
        except InputError as error:
            report.refused = f"of a schema: {error}"[:160]
            continue
        options: dict[str, Any] = {
            "seed": draw.randrange(99),
            "temperature": draw.choice([0.0, 1.0, 1.0, 3.0]),
            "max_new_tokens": draw.choice([5, 40, 150]),
            "n": draw.choice([1, 1, 2]),
            "logits_processors": [processor],
        }
        if draw.random() < 0.3:
            options["logprobs"] = 2
        if draw.random() < 0.4:
            options["prediction"] = json.dumps(
                draw_value(draw, schema), indent=draw.choice([None, 1])
            )
        if draw.random() < 0.2:
            options["logit_bias"] = {draw.randrange(3, 90): draw.choice([-100.0, 8.0])}
        cut = draw.randint(0, 9) if draw.random() < 0.1 else None
        asked.append((schema, Request(draw.choice(QUESTIONS), **options), cut))
    expected = [asked_plainly(plain, truths, request) for _, request, _ in asked]
    answers = engine.generate(
        [r if cut is None else replace(r, is_wanted=wanted(cut)) for _, r, cut in asked]
    )
    exact = rounding_of(plain)
    for (schema, request, cut), right, got in zip(asked, expected, answers, strict=True):
        report.count(got)
        told = f"{json.dumps(schema)} {request}"
        if len(got.samples) != len(right):
            yield f"{told}: {len(got.samples)} samples of {len(right)}: {got.error!r}"
            continue
        for one, said in zip(right, got.samples, strict=True):
            compared = differences(one, said, may_close=cut is not None, exact=exact)
            yield from (f"{told}: {each}" for each in compared)
            if one.finish_reason == "eos":
                yield from (f"{told}: {each}" for each in _not_of(schema, one.text))


def _not_of(schema: Mapping[str, Any], text: str) -> Iterator[str]:
    try:
        value = json.loads(text)
    except ValueError as error:
        yield f"{text!r} is no JSON: {error}"
        return
    if find_spec("jsonschema"):
        import jsonschema

        for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
            yield f"{text!r} is not of the schema: {error.message}"


def draw_schema(draw: random.Random, *, depth: int) -> dict[str, Any]:
    kind = draw.choice(
        ["object"] * 3 * (depth > 0) + ["array", "any"] * (depth > 0)
        + ["enum", "const", "string", "pattern", "integer", "number", "boolean", "null"]
    )  # fmt: skip
    if kind == "object":
        names = draw.sample(WORDS, draw.randint(0, 3))
        made: dict[str, Any] = {
            "type": "object",
            "properties": {name: draw_schema(draw, depth=depth - 1) for name in names},
            "required": [name for name in names if draw.random() < 0.7],
        }
        if draw.random() < 0.8:
            made["additionalProperties"] = False
        return made
    if kind == "array":
        least = draw.randint(0, 2)
        return {
            "type": "array",
            "items": draw_schema(draw, depth=depth - 1),
            "minItems": least,
            "maxItems": least + draw.randint(0, 3),
        }
    if kind == "any":
        return {"anyOf": [draw_schema(draw, depth=depth - 1) for _ in range(draw.randint(1, 3))]}
    if kind == "enum":
        return {"enum": draw.sample([*WORDS, 1, -2.5, True, None], draw.randint(1, 4))}
    if kind == "const":
        return {"const": draw.choice([*WORDS, 7, {"a": [1, 2]}, []])}
    if kind == "string":
        return {"type": "string", "maxLength": draw.choice([0, 1, 5])}
    if kind == "pattern":
        return {"type": "string", "pattern": draw.choice(["^[ab]{2}$", "^(yes|no)$", "^a*b$"])}
    if kind in ("integer", "number"):
        least = draw.choice([-5, 0, 10])
        most = least + draw.choice([0, 1, 90])
        return {"type": kind, "minimum": least, "maximum": most}
    return {"type": kind}


def draw_value(draw: random.Random, schema: Mapping[str, Any]) -> Any:
    """One of the schema, more or less: what a user may think that comes."""
    if draw.random() < 0.1:
        return draw.choice(WORDS)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    if "anyOf" in schema:
        return draw_value(draw, draw.choice(schema["anyOf"]))
    match schema["type"]:
        case "object":
            return {name: draw_value(draw, one) for name, one in schema["properties"].items()}
        case "array":
            return [draw_value(draw, schema["items"]) for _ in range(schema["maxItems"])]
        case "string":
            return draw.choice(["", "a", "yes", "ab"])
        case "integer" | "number":
            return schema["minimum"]
        case "boolean":
            return True
    return None
