"""Pictures, frames and recordings as users give them: in chats, and in batches of texts."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmspec.engine import Engine
from mmspec.errors import InputError
from mmspec.inputs import Passage
from mmspec.requests import Request, Result

from .cases import wanted
from .chats import QUESTIONS, played_chat
from .drafting import Truths
from .judge import differences, leaks, rounding_of, watched
from .report import Report, may_refuse
from .speakers import SEEING, WRITING, asked_plainly, draw_engine, draw_media, plain_speaker
from .steering import draw_kept, draw_penalties, draw_sampling

NAMESPACES = ("", "", "a", "b")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
QUOTED = "{{ question }}{% for one in passages %} ({{ one.id }}{{ one.text }}){% endfor %}"


def play_talk(draw: random.Random, report: Report, folder: Path) -> None:
    name = draw.choice([*SEEING, "writing60"])
    plain, truths = plain_speaker(name), Truths()
    exact = rounding_of(plain)
    with may_refuse():
        engine, report.title = draw_engine(draw, name, truths)
    with watched([engine]) as caches:
        for number in range(draw.choice([1, 2, 3])):
            if draw.random() < 0.4:
                report.begin(number, "a chat with media")
                found = played_chat(
                    draw, engine, plain, report, exact=exact,
                    draw_media=lambda: draw_media(draw, name, most=1),
                )  # fmt: skip
                report.wrong += found
            else:
                report.begin(number, "a batch with media")
                report.wrong += _played_batch(draw, engine, plain, truths, name, report)
        report.wrong += leaks(engine, caches)


def _played_batch(
    draw: random.Random, engine: Engine, plain: Engine, truths: Truths, name: str, report: Report
) -> Iterator[str]:
    requests = []
    for _ in range(draw.randint(1, 4)):
        options: dict[str, Any] = {**draw_sampling(draw), **draw_penalties(draw), **draw_kept(draw)}
        options |= {"seed": draw.randrange(99), "max_new_tokens": draw.choice([1, 5, 12])}
        options |= {"n": draw.choice([1, 1, 1, 2]), "namespace": draw.choice(NAMESPACES)}
        requests.append(Request(draw.choice(QUESTIONS), **draw_media(draw, name), **options))
        worded = replace(requests[-1], **_draw_wording(draw, name))
        try:
            plain.prepare(worded)
        except InputError:  # as a template has no place for it
            continue
        requests[-1] = worded
    expected = [asked_plainly(plain, truths, request) for request in requests]
    cut = [draw.randint(0, 6) if draw.random() < 0.15 else None for _ in requests]
    for request, right, got, after in zip(
        requests, expected, _answers(draw, engine, requests, cut), cut, strict=True
    ):
        report.count(got)
        if len(got.samples) != len(right):
            yield f"{request}: {len(got.samples)} samples of {len(right)}: {got.error!r}"
            continue
        exactly = rounding_of(plain)
        if request.logprobs_of == "processed":
            exactly /= min(request.temperature or 1.0, 1.0)
        for one, said in zip(right, got.samples, strict=True):
            for each in differences(
                one,
                said,
                may_close=after is not None,
                exact=exactly,
                logprobs_of=request.logprobs_of,
            ):
                yield f"{request}: {each}"


def _draw_wording(draw: random.Random, name: str) -> dict[str, Any]:
    """What stands round a question. Tools and documents, where the template shows them."""
    kinds: list[dict[str, Any]] = [
        {"system": "Be brief."},
        {"control_tokens": draw.choice(["neutralise", "refuse", "parse"])},
        {"passages": ["the cat and the hat", Passage("what is that?", in_prompt=False)]},
        {"passages": "so", "passage_template": QUOTED},
    ]
    if name in WRITING:
        kinds += [
            {"tools": [TOOL]},
            {"documents": [{"text": "the hat"}]},
            {"template_arguments": {"mood": "gay"}},
        ]
    drawn = draw.sample(kinds, draw.choice([0, 0, 1, 2]))
    return {option: value for kind in drawn for option, value in kind.items()}


def _answers(
    draw: random.Random, engine: Engine, requests: list[Request], cut: list[int | None]
) -> list[Result]:
    asked = [
        request if after is None else replace(request, is_wanted=wanted(after))
        for request, after in zip(requests, cut, strict=True)
    ]
    how = draw.choice(["requests", "each", "prepared", "texts"])
    if how == "prepared":
        return engine.generate([engine.prepare(request) for request in asked])
    if how == "each":
        found = dict(engine.generate_each(iter(asked)))
        return [found[number] for number in range(len(asked))]
    if how == "requests":
        return engine.generate(asked)
    # Texts with their media beside them: in one call of their own for each, or one for all.
    bare = [replace(request, images=(), videos=(), audio=()) for request in asked]
    media: dict[str, Any] = {}
    for kind in ("images", "videos", "audio"):
        given = [_loose(getattr(request, kind)) for request in asked]
        if any(given):
            media[kind] = given if draw.random() < 0.5 else iter(given)
    if any(not isinstance(given, list) for given in media.values()):
        found = dict(engine.generate_each(iter(bare), **media))
        return [found[number] for number in range(len(asked))]
    return engine.generate(bare, **media)


def _loose(media: Any) -> Any:
    """None, a list of them."""
    return list(media) or None
