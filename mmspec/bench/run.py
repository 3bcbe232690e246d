"""Interleaved runs: every method decodes every prompt, one after the other, pair after pair."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mmspec.bench.harness import turned
from mmspec.bench.loops import loop_start
from mmspec.bench.suites import Fitted, Task, fitted
from mmspec.bench.timeline import Run
from mmspec.errors import InputError, MmspecError
from mmspec.inputs import InputProcessor
from mmspec.state import Prompt

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 8


class Runner(Protocol):
    """A method that is loaded."""

    def run(self, prompt: Prompt, max_new_tokens: int) -> Run: ...


@dataclass(frozen=True)
class Case:
    """One prompt of a task, and the greedy text of our plain decoding up to where it loops."""

    prompt: Prompt
    is_cut: bool  # its document lost its end
    tokens: tuple[int, ...]
    num_before_cut: int  # tokens of the text with its loop


@dataclass
class Measurements:
    """All runs of one task."""

    task: str
    max_new_tokens: int
    cases: list[Case]
    left_out: int = 0  # prompts that were too long, and had nothing to cut
    # method -> pair -> case
    runs: dict[str, list[list[Run]]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # method -> why


def measure(
    tasks: Sequence[Task],
    runners: Mapping[str, Runner],
    inputs: InputProcessor,
    *,
    plain: Runner,
    pairs: int,
    room: int,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Measurements]:
    """Runs all of it; `room` is how many tokens a prompt may have, `plain` our plain decoding.

    The plain text of a prompt says where it is cut for all methods: they generate so many tokens
    and no more. Each method first decodes a few tokens of each prompt, which is not measured; one
    of transformers' that fails there is refused, with its reason, for that task.
    Raises InputError where no prompt fits.
    """
    fitting = [_fitting(task, inputs, room) for task in tasks]  # before anything is measured
    measured = []
    for task, fits in zip(tasks, fitting, strict=True):
        result = _prepared(task, fits, plain, progress)
        names = [name for name in runners if _can_run(name, runners[name], result)]
        for name in names:
            result.runs[name] = [[] for _ in range(pairs)]
        for pair in range(pairs):
            progress(f"{task.name}: pair {pair + 1} of {pairs}")
            for index, name in turns(names, len(result.cases), pair):
                case = result.cases[index]
                run = runners[name].run(case.prompt, len(case.tokens))
                result.runs[name][pair].append(run)
        measured.append(result)
    return measured


def turns(names: Sequence[str], num_cases: int, pair: int) -> Iterator[tuple[int, str]]:
    """(case, method) in order: the methods of a case follow one another. They begin with another
    one at each case and pair, and once all have begun they go backwards, so that each stands
    everywhere, before and after every other."""
    for case in range(num_cases):
        order = turned(names, case + pair)
        is_backward = names and (case // len(names) + pair // len(names)) % 2
        for name in reversed(order) if is_backward else order:
            yield case, name


def _fitting(task: Task, inputs: InputProcessor, room: int) -> list[Fitted]:
    fits = [fitted(question, inputs, room) for question in task.questions]
    kept = [one for one in fits if one is not None]
    if not kept:
        raise InputError(
            f"task {task.name!r}: none of its {len(fits)} prompts fits {room} tokens and none has "
            "a document to cut; allow longer ones, or leave the task out"
        )
    return kept


def _prepared(
    task: Task, fitting: Sequence[Fitted], plain: Runner, progress: Callable[[str], None]
) -> Measurements:
    cases = []
    for number, one in enumerate(fitting, 1):
        progress(f"{task.name}: plain text {number} of {len(fitting)}")
        tokens = plain.run(one.prompt, task.max_new_tokens).tokens
        kept = tokens[: loop_start(tokens)]
        cases.append(Case(one.prompt, one.is_cut, kept, len(tokens)))
    return Measurements(
        task.name, task.max_new_tokens, cases, left_out=len(task.questions) - len(cases)
    )


def _can_run(name: str, runner: Runner, result: Measurements) -> bool:
    """Warms the method up on each of the task's prompts."""
    for case in result.cases:
        try:
            runner.run(case.prompt, min(WARM_UP_TOKENS, len(case.tokens)))
        except MmspecError:
            raise
        except Exception as error:  # a peer's limit: shown in the report in its own words
            logger.info("%s refuses %s", name, result.task, exc_info=error)
            result.refused[name] = f"{type(error).__name__}: {error}"
            return False
    return True
