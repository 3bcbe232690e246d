"""Tasks and an engine -> a ledger full of answers."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mmspec.batch.ledger import Ledger
from mmspec.batch.work import Task
from mmspec.engine import Engine
from mmspec.errors import InputError, MmspecError
from mmspec.inputs import Passage
from mmspec.reading import Guide, Reading
from mmspec.requests import Request, Result, build_request


def answer_values(result: Result) -> dict[str, object]:
    """What a line of answers holds beside its id."""
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "prompt_tokens": result.stats.prompt_tokens,
        "new_tokens": result.stats.new_tokens,
        "tokens_per_step": round(result.stats.tokens_per_step, 3),
    }


@dataclass
class Tally:
    """What became of a run so far."""

    num_answered: int = 0
    num_cut_off: int = 0  # of these: as long as they may be
    num_failed: int = 0
    num_earlier: int = 0  # answered by an earlier run
    new_tokens: int = 0
    accepted_tokens: int = 0  # of these: drafted
    steps: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)  # the first ones, each with its place

    @property
    def num_done(self) -> int:
        return self.num_answered + self.num_failed + self.num_earlier


_FAILURES_KEPT = 20
_BESIDE = ("images", "videos", "audio", "passages")  # fields of a request


def run_batch(
    engine: Engine | Callable[[], Engine],
    tasks: Iterable[Task],
    ledger: Ledger,
    *,
    options: Mapping[str, object],
    seed: int,
    on_progress: Callable[[Tally], None] = lambda tally: None,
    told: Callable[[Result], dict[str, object]] | None = None,
) -> Tally:
    """Answers what the ledger does not hold yet, `decode.max_rows` tasks at a time, and writes each
    answer as it ends: so in no fixed order. A task that fails costs no other.

    Under the id of an answer another question is answered anew, in its place; where that fails the
    id has no answer.

    `options` are fields of `Request`, for all; a task's own win. `told` says what is written of an
    answer, without it what `answer_values` does and what a thinking model's answer is made of. A
    task's seed is its own, or comes from `seed` and its id, so its answer depends on neither the
    batch nor on where an earlier run was stopped. What loads an `engine` is called with the first
    task that is to be answered, before `options` are read. Raises InputError: a wrong option, a
    full disk.
    """
    tally, begun, seen = Tally(), time.perf_counter(), set[str]()
    running: dict[int, tuple[Task, str, Request]] = {}
    loaded: Engine | None = None

    def fail(task: Task, error: MmspecError, asked: str | None = None) -> None:
        values = {"id": task.id, "error": str(error)}
        ledger.write(values if asked is None else {**values, "asked": asked})
        tally.num_failed += 1
        if len(tally.failures) < _FAILURES_KEPT:
            is_placed = error is task.error
            tally.failures.append(str(error) if is_placed else f"{task.id}: {error}")
        tally.seconds = time.perf_counter() - begun
        on_progress(tally)

    def left() -> Iterator[tuple[Task, str]]:
        for task in tasks:
            asked = None if task.request is None else question_digest(task.request, task.options)
            if task.id in seen:
                fail(task, InputError("this id was there before; give each line its own"))
            elif ledger.holds(task.id, asked):
                tally.num_earlier += 1
                on_progress(tally)
            elif task.error is not None:
                fail(task, task.error, asked)
            else:
                assert asked is not None
                yield task, asked
            seen.add(task.id)

    def requests(asked_for: Iterable[tuple[Task, str]]) -> Iterator[Request]:
        common = {name: value for name, value in options.items() if name not in _BESIDE}
        for number, (task, asked) in enumerate(asked_for):
            own = {**common, "seed": task_seed(seed, task.id), **task.options}
            request = build_request(task.request, own)
            running[number] = task, asked, request
            yield request

    def values_of(request: Request, result: Result) -> dict[str, object]:
        if told is not None:
            return told(result)
        assert loaded is not None
        return {**answer_values(result), **_parts(loaded, request, result)}

    def results() -> Iterator[tuple[int, Result]]:
        nonlocal loaded
        others = left()
        first = next(others, None)
        if first is not None:
            loaded = engine if isinstance(engine, Engine) else engine()
            beside = {name: options[name] for name in _BESIDE if name in options}
            yield from loaded.generate_each(requests(chain([first], others)), **beside)

    for number, result in results():
        task, asked, request = running.pop(number)
        if result.error is not None:
            fail(task, result.error, asked)
        else:
            ledger.write({"id": task.id, **values_of(request, result), "asked": asked})
            tally.num_answered += 1
            tally.num_cut_off += result.finish_reason == "length"
        tally.new_tokens += result.stats.new_tokens
        tally.accepted_tokens += result.stats.accepted_tokens
        tally.steps += result.stats.steps
        tally.seconds = time.perf_counter() - begun
        on_progress(tally)
    tally.seconds = time.perf_counter() - begun
    return tally


def _parts(engine: Engine, request: Request, result: Result) -> Mapping[str, str]:
    """What the answer of a thinking model is made of; nothing where it follows a grammar.

    By what is said in its prompt, media aside: that may open the reasoning, or not."""
    if any(isinstance(one, Guide) for one in request.logits_processors):
        return {}
    prompt = _said(request.prompt)
    said = replace(request, prompt=prompt, images=(), videos=(), audio=(), passages=())
    try:
        if not Reading(engine.inputs, said).may_reason:  # as of most models: nothing to prepare
            return {}
        return Reading(engine.inputs, engine.prepare(said)).answer_of_tokens(result).parts
    except MmspecError:  # some templates want what is left out here
        return {}


def _said(prompt: object) -> Any:
    """The prompt; of messages their text. What has none is not refused for that."""
    if not isinstance(prompt, list | tuple):
        return prompt or "?"
    return [
        {**message, "content": [part for part in content if _is_text(part)] or "?"}
        if isinstance(content := message.get("content"), list | tuple)
        else message
        for message in prompt
    ]


def _is_text(part: object) -> bool:
    return not isinstance(part, Mapping) or part.get("type", "text") == "text"


def task_seed(seed: int, name: str) -> int:
    """The seed of one task: the same in every run, whatever else is answered."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode(errors="backslashreplace")).digest()
    return int.from_bytes(digest[:4], "big")


def question_digest(request: Request, options: Mapping[str, object]) -> str:
    """The same for the same texts and options of their own, and media by the same names or bytes.
    What else a medium may be counts by its kind alone."""
    media = [request.images, request.videos, request.audio]
    own = [options] if options else []  # questions without any are as old as ledgers
    told = json.dumps([request.prompt, request.passages, media, *own], default=_plainly)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _plainly(value: object) -> str:
    if isinstance(value, Passage):
        return value.text
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value) if isinstance(value, Path) else type(value).__name__
