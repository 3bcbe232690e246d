"""A conversation with an engine, each turn of it compared with the same messages asked alone."""

import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mmspec.engine import Engine

from .judge import differences
from .steering import draw_penalties, draw_sampling

if TYPE_CHECKING:
    from .report import Report

Media = dict[str, list[Any]]  # as `Request` names them: images, videos, audio
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"
    "{% for document in documents or [] %}{{ document.text }} {% endfor %}{{ mood }}"
    "{% for message in messages %}<s>{{ message['role'][0] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>a: {% endif %}"
)
QUESTIONS = ("what is that?", "and then?", "so", "x", "the cat and the hat and the cat", "</s> <s>")


def played_chat(
    draw: random.Random,
    engine: Engine,
    plain: Engine,
    report: "Report",
    *,
    exact: float,
    draw_media: Callable[[], Media] = dict,
) -> Iterator[str]:
    """Turns that are sent, streamed or left early; what the chat holds is what was said.
    `draw_media`: what a question comes with."""
    options: dict[str, Any] = {
        **(draw_sampling(draw) if not engine._rule.is_greedy_only else {"temperature": 0.0}),
        **draw_penalties(draw),
        "max_new_tokens": draw.choice([1, 6, 14]),
    }
    system = draw.choice([None, "Be brief."])
    namespace = draw.choice(["", "a"])
    chat = engine.chat(system=system, namespace=namespace, **options)
    for turn in range(draw.randint(1, 4)):
        question, seed = draw.choice(QUESTIONS), draw.randrange(99)
        before = list(chat.messages)
        media = draw_media()
        asked = [*before, {"role": "user", "content": parts_of(question, media)}]
        expected = plain.generate(asked, seed=seed, speculate=False, **options)
        speculate = draw.choice(["auto", True])
        if draw.random() < 0.6:
            got = chat.send(question, seed=seed, speculate=speculate, **media)
        else:
            stream = chat.stream(question, seed=seed, speculate=speculate, **media)
            for _ in range(draw.choice([0, 1, 3, 99])):
                if next(stream, None) is None:
                    break
            stream.close()
            got = stream.result
        report.requests += 1
        report.tokens += len(got.tokens)
        report.accepted += sum(n * steps for n, steps in got.stats.accepted_lengths.items())
        for each in differences(expected, got, may_close=True, exact=exact):
            yield f"turn {turn} ({question!r}, {options}): {each}"
        told = [*asked, {"role": "assistant", "content": got.text}] if got.tokens else before
        if [_spoken(m) for m in chat.messages] != [_spoken(m) for m in told]:
            yield f"turn {turn}: the chat holds {chat.messages}, expected {told}"
        if draw.random() < 0.2:
            engine.clear_cache(draw.choice([None, "", "a"]))


def _spoken(message: Any) -> tuple[str, str]:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(map(_of_part, content))
    return message["role"], text


def _of_part(part: dict[str, Any]) -> str:
    return str(part["text"]) if part["type"] == "text" else f"<{part['type']}>"


def parts_of(question: str, media: Media) -> str | list[dict[str, Any]]:
    """A message's content: its media first."""
    kinds = [
        ({"images": "image", "videos": "video"}.get(n, n), one) for n in media for one in media[n]
    ]
    parts: list[dict[str, Any]] = [{"type": kind, kind: one} for kind, one in kinds]
    return [*parts, {"type": "text", "text": question}] if parts else question
