"""Files -> lessons -> examples: what is asked, what is learned, and what is left out and said."""

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmspec.batch import Tally
from mmspec.engine import Engine
from mmspec.errors import ConfigError, InputError
from mmspec.requests import Request
from mmspec.training.heads.epochs import Place, batches, split, walk
from mmspec.training.heads.examples import Example, ExampleMaker, encoded, make_examples
from mmspec.training.heads.lessons import Lesson, read_lessons
from mmspec.training.heads.prepare import DataSettings, prepare
from mmspec.training.heads.train_head import train_head
from mmspec.training.tiny.build import ASSISTANT, BOS, EOS, NUM_SPECIALS, USER

CALLS = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


def written(path: Path, *lines: Mapping[str, object] | str) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return str(path)


def read(*paths: str, prompt: str | None = None) -> tuple[list[Lesson], list[str]]:
    broken: list[InputError] = []
    found = list(read_lessons(paths, prompt=prompt, on_broken=broken.append))
    return found, [str(error) for error in broken]


def test_every_form_of_a_line_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "all.jsonl",
        {"id": "open", "prompt": "Hm?"},
        {"id": "given", "prompt": "Hm?", "response": "Yes.", "image": "a.png"},
        {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]},
        {
            "id": "llava",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "That."},
            ],
        },
        {"id": "text", "text": "Once upon a time"},
        {"id": "other", "body": "?"},
        "{",
        {"id": "calls", "messages": [{"role": "user", "content": "A"}, CALLS]},
    )
    lessons, broken = read(path)
    named = {lesson.id: lesson for lesson in lessons}
    assert named["open"].is_open and not named["given"].is_open
    assert named["given"].answer == "Yes."
    assert named["given"].request.images == (str(tmp_path / "a.png"),)  # type: ignore[union-attr]
    chat = named[f"{path}#3"]
    assert chat.answer == "B" and chat.request.prompt == [{"role": "user", "content": "A"}]  # type: ignore[union-attr]
    llava = named["llava"]
    assert llava.answer == "That." and llava.request.images  # type: ignore[union-attr]
    assert llava.request.prompt == [  # type: ignore[union-attr]
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    ]
    assert named["text"].text == "Once upon a time" and named["text"].request is None
    assert named["calls"].is_open, "what calls tools has no text"
    assert named["calls"].request.prompt == chat.request.prompt  # type: ignore[union-attr]
    assert len(broken) == 2 and "line 6" in broken[0] and "line 7" in broken[1]


def test_an_empty_answer_is_left_out(tmp_path: Path) -> None:
    """As a table has it for rows without one."""
    path = written(tmp_path / "a.csv", "prompt,answer,output", "Hm?,,", "Why?,,So.", "Ha?,Ho.,")
    lessons, _ = read(path)
    assert [lesson.answer for lesson in lessons] == [None, "So.", "Ho."]
    assert [lesson.is_open for lesson in lessons] == [True, False, False]


def test_a_mark_stands_for_what_the_record_brings(tmp_path: Path) -> None:
    said = "<image>\nWhat is <video>?"
    turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "That."}]
    path = written(
        tmp_path / "marks.jsonl",
        {"conversations": turns},  # of a picture in XML, say
        {"image": "a.png", "conversations": turns},
        {"video": "a.mp4", "conversations": turns},
    )
    lessons, _ = read(path)
    contents = [lesson.request.prompt[0]["content"] for lesson in lessons]  # type: ignore
    picture, film = {"type": "image"}, {"type": "video"}
    assert contents == [
        said,
        [picture, {"type": "text", "text": "What is <video>?"}],
        [film, {"type": "text", "text": "What is "}, film, {"type": "text", "text": "?"}],
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_objects_is_read_as_its_lines_would_be(
    tmp_path: Path, indent: int | None
) -> None:
    """As ShareGPT's and LLaVA's files are; a .json of one object a line is read, too."""
    chat = {"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]}
    rows = [{"id": "é", **chat}, {"id": "body", "body": "?"}, ["?"], {"id": "last", "text": "C"}]
    path = tmp_path / "chats.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    lessons, broken = read(path)
    assert [(lesson.id, lesson.answer, lesson.text) for lesson in lessons] == [
        ("é", "B", None),
        ("last", None, "C"),
    ]
    assert "row 2: got the keys" in broken[0] and "row 3: got list" in broken[1]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    again, _ = read(path)
    assert again == lessons
    path.write_text('[{"id": 1},', encoding="utf-8")
    assert read(path) == ([], [f"{path}: is not JSON: {_end(path)}"])


def _end(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        json.loads(path.read_text(encoding="utf-8"))
    return f"{caught.value}; expected an array of objects, or one object a line"


@pytest.mark.parametrize("name", ["all.jsonl", "all.json"])
def test_half_a_character_costs_its_own_record_alone(
    nano: Engine, tmp_path: Path, name: str
) -> None:
    """As scraped chats have it, an emoji cut in two; no tokenizer takes it."""
    half = "so \ud83d"
    rows: list[dict[str, object]] = [
        {"prompt": half, "answer": "Hm."},
        {"prompt": "Hm?", "answer": half},
        {"text": f"a text and {half}"},
        {"prompt": "Why?", "answer": "So."},
        {"text": "a text of its own"},
    ]
    path = tmp_path / name
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    found = prepare(nano, [str(path)], DataSettings(held_out=0), tmp_path)
    assert [one.id for one in found.examples] == [f"{path}#4", f"{path}#5"]
    assert found.num_broken == 3 and all("lone surrogate" in why for why in found.broken)


def test_documents_are_texts_or_are_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Title")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    lessons, broken = read(str(tmp_path))
    assert [lesson.text for lesson in lessons] == ["# Title"] and "--prompt" in broken[0]
    lessons, broken = read(str(tmp_path), prompt="What is it?")
    assert [lesson.is_open for lesson in lessons] == [True, True] and not broken


def maker(engine: Engine, **options: object) -> ExampleMaker:
    assert engine.inputs is not None
    given = {"eos_token_ids": frozenset([EOS]), "max_tokens": 100, **options}
    return ExampleMaker(engine.inputs, **given)  # type: ignore[arg-type]


def said(text: str) -> list[int]:
    return [NUM_SPECIALS + byte for byte in text.encode()]


def made(
    engine: Engine, lesson: Lesson, answers: Mapping[str, Sequence[int]] = {}, **options: object
) -> list[Example]:
    return list(maker(engine, **options).make(lesson, answers))


def test_of_a_chat_the_answers_are_learned_with_the_token_that_ends_them(nano: Engine) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Why?"},
    ]
    (example,) = made(nano, Lesson("x", Request(messages), "So</s>"))
    expected = [
        *(BOS, USER, *said("Hi"), ASSISTANT, *said("Ho"), EOS),
        *(USER, *said("Why?"), ASSISTANT, *said("So</s>"), EOS),
    ]
    assert example.tokens.tolist() == expected  # what looks like a control token is text
    learned = "....." + "xxx" + "......" + "xxxxxxx"
    assert ["x" if one else "." for one in example.learned] == list(learned)
    assert example.num_before == 14 and example.request is None
    (example,) = made(nano, Lesson("x", Request(messages), "So"), learn="all")
    assert example.learned.all()


def test_of_a_chat_about_pictures_all_answers_are_learned(nano: Engine, tmp_path: Path) -> None:
    """Also where a later turn brings another picture, and where the same words stand elsewhere."""
    shown = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, size in zip(shown, ((8, 8), (16, 8)), strict=True):
        Image.new("RGB", size).save(path)
    given: dict[str, object] = {"type": "image", "image": shown[0]}
    messages = [
        {"role": "user", "content": [given, {"type": "text", "text": "Ho"}]},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
        {"role": "assistant", "content": "Ha"},
        {"role": "user", "content": "Ho"},
    ]
    request = Request(messages, images=shown[1:])
    (example,) = made(nano, Lesson("x", request, "So"), max_tokens=1000)
    answers = [[*said(text), EOS] for text in ("Ho", "Ha", "So")]
    assert example.tokens[example.learned].tolist() == [id for answer in answers for id in answer]
    starts = np.flatnonzero(np.diff(example.learned.astype(int)) == 1)
    assert example.tokens[starts].tolist() == [ASSISTANT] * 3
    assert example.request is request


def test_a_greeting_that_nobody_asked_for_is_not_learned(nano: Engine) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Hi"},
        CALLS,
        {"role": "assistant", "content": "Ho"},  # no answer of its own
        {"role": "user", "content": "Ha"},
    ]
    (example,) = made(nano, Lesson("x", Request(messages), "Ho"))
    assert example.tokens[example.learned].tolist() == [*said("Ho"), EOS]


def test_the_targets_own_answer_is_taken_as_it_chose_it(nano: Engine) -> None:
    own = [*said("ab"), EOS]
    (example,) = made(nano, Lesson("x", Request("Hi"), "given"), {"x": own})
    assert example.tokens[example.learned].tolist() == own


def test_a_pictures_placeholders_are_not_learned(nano: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    request = Request("Hi", images=(str(tmp_path / "a.png"),))
    (example,) = made(nano, Lesson("x", request, "Ho"), max_tokens=400, learn="all")
    assert example.request is request
    hidden = np.flatnonzero(~example.learned)
    assert len(hidden) > 10 and hidden[-1] - hidden[0] == len(hidden) - 1
    with pytest.raises(InputError, match="max_tokens"):
        made(nano, Lesson("x", request, "Ho"), max_tokens=20)


def test_a_prompt_is_learned_with_all_that_belongs_to_it() -> None:
    given: list[dict[str, object]] = []
    inputs: Any = SimpleNamespace(encode=lambda prompt, **told: given.append(told))
    media = {"images": ("a.png",), "videos": ("b.gif",), "audio": ("c.wav",)}
    encoded(inputs, Request("Say.", **media))
    assert {name: given[0].get(name) for name in media} == media


def test_long_texts_are_cut(nano: Engine) -> None:
    parts = made(nano, Lesson("x", text="a" * 25), max_tokens=11)
    assert [part.num_tokens for part in parts] == [11, 11, 6]
    assert [part.id for part in parts] == ["x#0", "x#1", "x#2"]
    assert all(part.tokens[0] == BOS and part.learned.all() for part in parts)
    (example,) = made(nano, Lesson("x", Request("Hi"), "Ho" * 9), max_tokens=11)
    assert example.num_tokens == 11
    with pytest.raises(InputError, match="nothing to learn"):
        made(nano, Lesson("x", Request("a" * 30), "Ho"), max_tokens=11)


def test_what_gives_no_example_is_named_and_costs_no_other(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", lost)
    lessons = [
        Lesson("a", Request("Hi", images=("/none.png",)), "x"),
        Lesson("b", Request("Hi"), "yes"),
        Lesson("got", text="half \ud83d"),  # the message begins with the same word
        Lesson("c", Request("Hi", images=(__file__,)), "x"),
        Lesson("d", Request("Hi")),
    ]
    broken: list[InputError] = []
    found = make_examples(lessons, maker(nano), {}, on_broken=broken.append)
    assert [one.id for one in found] == ["b"]
    named = ("a: no such file: '/none.png'", "got: got a text", "c: [Errno 5]", "d: has no answer")
    for error, beginning in zip(broken, named, strict=True):
        assert str(error).startswith(beginning)


def test_an_epoch_holds_each_example_once_and_little_padding() -> None:
    lengths = [3, 90, 4, 5, 80, 3, 7, 300]
    found = batches(lengths, batch_tokens=180, seed=1, epoch=0)
    assert sorted(index for batch in found for index in batch) == list(range(8))
    for batch in found:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 180
    assert found != batches(lengths, batch_tokens=180, seed=1, epoch=1)
    assert found != batches(lengths, batch_tokens=180, seed=2, epoch=0)


def test_a_walk_goes_on_from_any_place() -> None:
    lengths = [3, 9, 4, 5, 8]
    options = {"batch_tokens": 10, "seed": 1}
    whole = walk(lengths, place=Place(), **options)  # type: ignore[arg-type]
    steps = [next(whole) for _ in range(12)]
    assert steps[-1][1].epoch > 0
    for done in (3, 7):
        again = walk(lengths, place=steps[done - 1][1], **options)  # type: ignore[arg-type]
        assert [next(again) for _ in range(12 - done)] == steps[done:]


def test_what_is_held_out_stays_held_out() -> None:
    ids = [f"a{n}" for n in range(40)]
    kept, held = split(ids, share=0.1, most=64, seed=0)
    assert len(held) == 4 and sorted([*kept, *held]) == list(range(40))
    assert split(ids[::-1], share=0.1, most=64, seed=0)[1] == sorted(39 - n for n in held)
    assert split(ids[:1], share=0.5, most=64, seed=0) == ([0], [])
    kept, held = split(ids[:3], share=0.9, most=64, seed=0)  # something is left to learn from
    assert len(kept) == 1 and len(held) == 2


def test_prompts_are_answered_by_the_target_once(nano: Engine, tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt": "Repeat: ab"},
        {"id": "b", "prompt": "Repeat: cd", "answer": "cd"},
        {"id": "b", "prompt": "Repeat: ef", "answer": "ef"},
        {"id": "b", "prompt": "Repeat: gh"},
        {"id": "c", "prompt": "Hm?", "image": "none.png"},
    )
    settings = DataSettings(max_new_tokens=8, held_out=0.5)
    told: list[tuple[int, int]] = []

    def on_answers(tally: Tally, total: int) -> None:
        told.append((tally.num_answered, total))

    found = prepare(nano, [path], settings, tmp_path, on_answers=on_answers)
    own = nano.generate("Repeat: ab", max_new_tokens=8)
    examples = {one.id: one for one in (*found.examples, *found.held_out)}
    assert examples["a"].tokens[examples["a"].learned].tolist() == list(own.tokens)
    assert examples["b"].tokens[examples["b"].learned].tolist() == [*said("cd"), EOS]
    # Of a picture that is asked about several times all questions have its id.
    assert examples["b (2)"].tokens[examples["b (2)"].learned].tolist() == [*said("ef"), EOS]
    own = nano.generate("Repeat: gh", max_new_tokens=8)
    assert examples["b (3)"].tokens[examples["b (3)"].learned].tolist() == list(own.tokens)
    assert found.num_broken == 1 and len(found.held_out) == 2 and told[-1] == (2, 3)
    assert any("none.png" in why for why in found.broken)
    told.clear()
    again = prepare(nano, [path], settings, tmp_path, on_answers=on_answers)
    assert again.fingerprint == found.fingerprint and set(told) == {(0, 3)}
    counts = again.learned_counts(nano.target.vocab_size)
    assert counts.sum() == sum(one.learned.sum() for one in again.examples)
    every = prepare(nano, [path], DataSettings(answers="own", max_new_tokens=8), tmp_path / "own")
    assert every.fingerprint != found.fingerprint


def test_what_was_learned_is_never_evaluated_by_a_run_that_goes_on(
    nano: Engine, tmp_path: Path
) -> None:
    """With another share held out a resumed run would be asked what it was told."""
    path = written(tmp_path / "a.jsonl", *({"text": f"the {n}. text of all"} for n in range(9)))

    def run(share: float, steps: int) -> None:
        overrides = {"train.held_out": share, "train.medusa.num_heads": 1}
        train_head(
            nano, path, head="medusa", out=tmp_path, steps=steps, resume=True, overrides=overrides
        )

    run(0.0, 1)
    with pytest.raises(ConfigError, match=r"began with held_out=0\.0, got 0\.3"):
        run(0.3, 2)
    run(0.0, 2)


def test_a_run_that_goes_on_is_compared_with_its_beginning(nano: Engine, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *({"text": f"the {n}. text of all"} for n in range(9)))
    overrides = {"train.held_out": 0.3, "train.medusa.num_heads": 1, "train.rate": 1e-2}
    first, rest, over = (
        train_head(
            nano, path, head="medusa", out=tmp_path, steps=steps, resume=True, overrides=overrides
        )
        for steps in (1, 3, 3)
    )
    assert first.first_acceptance is not None and rest.last is not None and over.last is None
    assert rest.first_acceptance == over.first_acceptance == first.first_acceptance
    assert rest.acceptance == over.acceptance != first.first_acceptance
