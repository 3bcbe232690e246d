"""Tasks and an engine -> a ledger full of answers."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mmspec.batch.ledger import Ledger
from mmspec.batch.posted import Desk, refusal_values
from mmspec.batch.work import Task
from mmspec.engine import Engine
from mmspec.errors import InputError, MmspecError
from mmspec.inputs import Passage
from mmspec.inputs.messages import says_system
from mmspec.reading import Guide, Reading
from mmspec.requests import Request, Result, build_request
from mmspec.serving.errors import ApiError, as_api_error


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
    model: str | None = None,
) -> Tally:
    """Answers what the ledger does not hold yet, `decode.max_rows` tasks at a time, and writes each
    answer as it ends: so in no fixed order. A task that fails costs no other.

    Under the id of an answer another question is answered anew, in its place; where that fails the
    id has no answer.

    `options` are fields of `Request`, for all; a task's own win. `told` says what is written of an
    answer, without it what `answer_values` does and what a thinking model's answer is made of. A
    task's seed is its own, or comes from `seed` and its id, so its answer depends on neither the
    batch nor on where an earlier run was stopped. What is posted is answered in OpenAI's form, in
    which `model` is its name; None: what it was loaded from. What loads an `engine` is called with
    the first task that is to be answered, before `options` are read. Raises InputError: a wrong
    option, a full disk.
    """
    tally, begun, seen = Tally(), time.perf_counter(), set[str]()
    running: dict[int, _Running] = {}  # by the numbers of their requests

    def fail(
        task: Task,
        error: MmspecError | ApiError,
        asked: str | None = None,
        *,
        is_written: bool = True,
    ) -> None:
        values: dict[str, object] = {"error": str(error)}
        if task.posted is not None:
            values = refusal_values(task.id, as_api_error(error))
        if is_written:
            ledger.write({"id": task.id, **values, **({} if asked is None else {"asked": asked})})
        tally.num_failed += 1
        if len(tally.failures) < _FAILURES_KEPT:
            is_placed = error is task.error
            tally.failures.append(str(error) if is_placed else f"{task.id}: {error}")
        tally.seconds = time.perf_counter() - begun
        on_progress(tally)

    def left() -> Iterator[tuple[Task, str]]:
        for task in tasks:
            asked = question_digest(task)
            if task.id in seen:
                told = f"the id {task.id!r} was there before; give each its own"
                again = InputError(f"{task.where or task.id}: {told}")
                # Of OpenAI's form there is one line an id: the first is its answer.
                fail(replace(task, error=again), again, is_written=task.posted is None)
            elif ledger.holds(task.id, asked):
                tally.num_earlier += 1
                on_progress(tally)
            elif task.error is not None:
                fail(task, task.error, asked)
            else:
                assert asked is not None
                yield task, asked
            seen.add(task.id)

    def requests(loaded: Engine, asked_for: Iterable[tuple[Task, str]]) -> Iterator[Request]:
        common = {name: value for name, value in options.items() if name not in _BESIDE}
        build_request("", common)  # a wrong option is not each line's own mistake
        desk, numbers = None, count()
        for task, asked in asked_for:
            own = {**common, "seed": task_seed(seed, task.id), **task.options}
            if task.request is not None and says_system(task.request.prompt):
                own["system"] = task.options.get("system")
            call: _Call
            if task.posted is None:
                call = _Question(loaded, build_request(task.request, own), told)
            else:
                desk = desk or Desk(loaded, model)
                try:
                    call = desk.open(task.id, task.posted, own)
                except ApiError as error:
                    fail(task, error, asked)
                    continue
            for place, request in enumerate(call.requests):
                running[next(numbers)] = _Running(task, asked, call, place)
                yield request

    def results() -> Iterator[tuple[int, Result]]:
        others = left()
        first = next(others, None)
        if first is not None:
            loaded = engine if isinstance(engine, Engine) else engine()
            beside = {name: options[name] for name in _BESIDE if name in options}
            asked = requests(loaded, chain([first], others))
            yield from loaded.generate_each(asked, **beside)

    for number, result in results():
        task, asked, call, place = running.pop(number)
        call.results[place] = result
        if None not in call.results:
            try:
                values = call.values()
            except (MmspecError, ApiError) as error:
                fail(task, error, asked)
            else:
                ledger.write({"id": task.id, **values, "asked": asked})
                tally.num_answered += 1
                samples = (sample for one in call.results if one for sample in one.samples)
                tally.num_cut_off += any(one.finish_reason == "length" for one in samples)
        for sample in result.samples:
            tally.new_tokens += sample.stats.new_tokens
            tally.accepted_tokens += sample.stats.accepted_tokens
            tally.steps += sample.stats.steps
        tally.seconds = time.perf_counter() - begun
        on_progress(tally)
    tally.seconds = time.perf_counter() - begun
    return tally


class _Call(Protocol):
    """A task under way."""

    @property
    def requests(self) -> Sequence[Request]: ...

    @property
    def results(self) -> list[Result | None]:
        """As many, to be filled in."""

    def values(self) -> dict[str, object]:
        """What is written beside its id, once it has its results. Raises MmspecError, ApiError."""


class _Running(NamedTuple):
    """One request of a task."""

    task: Task
    asked: str
    call: _Call
    place: int  # among the task's requests


class _Question:
    """A task of one request."""

    def __init__(
        self, engine: Engine, request: Request, told: Callable[[Result], dict[str, object]] | None
    ) -> None:
        self.requests = [request]
        self.results: list[Result | None] = [None]
        self._engine = engine
        self._told = told

    def values(self) -> dict[str, object]:
        (request,), (result,) = self.requests, self.results
        assert result is not None
        if result.error is not None:
            raise result.error
        if self._told is not None:
            return self._told(result)
        return {**answer_values(result), **_parts(self._engine, request, result)}


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


def question_digest(task: Task) -> str | None:
    """The same for the same texts and options of their own, and media by the same names or bytes.
    What else a medium may be counts by its kind alone. None where nothing is asked."""
    if task.posted is not None:
        asked: list[object] = [task.posted.method, task.posted.url, task.posted.body]
    elif task.request is not None:
        request, own = task.request, [task.options] if task.options else []
        asked = [request.prompt, request.passages]
        asked += [[request.images, request.videos, request.audio], *own]
    else:
        return None
    told = json.dumps(asked, default=_plainly)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _plainly(value: object) -> str:
    if isinstance(value, Passage):
        return value.text
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return str(value) if isinstance(value, Path) else type(value).__name__
