"""Data in files -> examples to learn from and examples held out, answered by the target where they
have no answer."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmspec.batch import Tally
from mmspec.engine import Engine
from mmspec.errors import InputError, MmspecError, check_setting
from mmspec.target.fingerprint import weights_fingerprint
from mmspec.training.heads.answers import own_answers, read_answers
from mmspec.training.heads.epochs import split
from mmspec.training.heads.examples import Example, ExampleMaker, Learn, make_examples
from mmspec.training.heads.lessons import Lesson, read_lessons
from mmspec.words import counted

Answers = Literal["auto", "own", "given"]
ANSWERS = "answers.jsonl"
_MOST_HELD_OUT = 32
_BROKEN_KEPT = 20
_check = partial(check_setting, "train")


@dataclass(frozen=True)
class DataSettings:
    """What is learned of the data. `answers` "own": every prompt is answered by the target, "given"
    none, "auto" those without an answer."""

    answers: Answers = "auto"
    temperature: float = 0.0
    max_new_tokens: int = 512
    learn: Learn = "answers"
    max_tokens: int = 2048
    held_out: float = 0.05
    seed: int = 0
    prompt: str | None = None  # asked about each document or image
    field: str = "text"  # of a JSONL line without a prompt

    def __post_init__(self) -> None:
        for name, known in (("answers", get_args(Answers)), ("learn", get_args(Learn))):
            got = getattr(self, name)
            _check(name, got in known, got, ", ".join(known))
        _check("max_tokens", self.max_tokens >= 8, self.max_tokens, "8 or more")
        _check("max_new_tokens", self.max_new_tokens >= 2, self.max_new_tokens, "2 or more")
        _check("held_out", 0 <= self.held_out < 1, self.held_out, "in [0, 1)")


@dataclass(frozen=True)
class Prepared:
    """Data that is ready."""

    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    num_broken: int
    broken: tuple[str, ...]  # the first ones: what was left out, and why
    fingerprint: str  # of all tokens and what is learned of them

    @property
    def num_tokens(self) -> int:
        return sum(example.num_tokens for example in self.examples)

    def learned_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """(vocab,) how often each token is learned."""
        counts = np.zeros(vocab_size, np.int64)
        for example in self.examples:
            learned = example.tokens[example.learned]
            counts += np.bincount(learned[learned < vocab_size], minlength=vocab_size)
        return counts


def prepare(
    engine: Engine,
    data: Sequence[str],
    settings: DataSettings,
    folder: Path,
    *,
    on_answers: Callable[[Tally, int], None] = lambda tally, total: None,
) -> Prepared:
    """Reads `data` (files, folders, globs: see `read_lessons`). The target's own answers are kept
    in `folder`/training/answers.jsonl, from which a killed run goes on. Raises InputError where
    nothing can be learned, and for an engine without a processor."""
    if engine.inputs is None:
        raise InputError("training needs the model's tokenizer: load it with processor=")
    broken: list[MmspecError] = []
    lessons = _lessons(data, settings, broken)
    path = folder / "training" / ANSWERS
    is_asked = {"own": lambda r: r.request is not None, "auto": lambda r: r.is_open}
    asked = [r for r in lessons if settings.answers != "given" and is_asked[settings.answers](r)]
    answers: dict[str, Sequence[int]] = {}
    if asked:
        options = {
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
        }
        tally = own_answers(
            engine,
            asked,
            path,
            run=_digest([weights_fingerprint(engine.target.model), settings.seed, options]),
            options=options,
            seed=settings.seed,
            on_progress=lambda tally: on_answers(tally, len(asked)),
        )
        broken += [InputError(failure) for failure in tally.failures]
        found = read_answers(path)
        answers = {lesson.id: found[lesson.id] for lesson in asked if lesson.id in found}
        failed = {lesson.id for lesson in asked} - set(answers)
        lessons = [lesson for lesson in lessons if lesson.id not in failed]
    eos = engine.target.model.generation_config.eos_token_id
    maker = ExampleMaker(
        engine.inputs,
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        max_tokens=min(settings.max_tokens, engine.target.max_positions or settings.max_tokens),
        learn=settings.learn,
    )
    examples = make_examples(lessons, maker, answers, on_broken=broken.append)
    told = [str(error) for error in broken]
    if len(examples) < 2:
        why = f": {told[0]}" if told else ""
        raise InputError(
            f"{', '.join(data)}: {counted(len(examples), 'text')} to learn from; expected two at "
            f"least{why}"
        )
    kept, held = split(
        [example.id for example in examples],
        share=settings.held_out,
        most=_MOST_HELD_OUT,
        seed=settings.seed,
    )
    return Prepared(
        tuple(examples[index] for index in kept),
        tuple(examples[index] for index in held),
        len(broken),
        tuple(told[:_BROKEN_KEPT]),
        _fingerprint(examples),
    )


def _lessons(
    data: Sequence[str], settings: DataSettings, broken: list[MmspecError]
) -> list[Lesson]:
    """The lessons, each with an id of its own, whose answer is found by it: LLaVA's are those of
    pictures, many of them asked about several times. Without their answers where those are not
    wanted."""
    times: Counter[str] = Counter()
    found: dict[str, Lesson] = {}
    for lesson in read_lessons(
        data, prompt=settings.prompt, field=settings.field, on_broken=broken.append
    ):
        name = lesson.id
        while name in found:
            times[lesson.id] += 1
            name = f"{lesson.id} ({times[lesson.id] + 1})"
        is_own = settings.answers == "own" and lesson.request is not None
        found[name] = replace(lesson, id=name, answer=None if is_own else lesson.answer)
    return list(found.values())


def _fingerprint(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.id.encode(errors="backslashreplace") + b"\0")
        digest.update(example.tokens.tobytes() + example.learned.tobytes())
    return digest.hexdigest()[:12]


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
