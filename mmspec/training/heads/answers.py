"""The target's own answers, in a ledger that a killed run goes on with.

Heads draft what the target says, so they learn best from what it says (Medusa's self-distillation,
arXiv 2401.10774 section 2.2.3; GliDe and EAGLE-3 train on generated answers as well).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mmspec.batch import Ledger, Tally, Task, run_batch
from mmspec.engine import Engine
from mmspec.requests import Result
from mmspec.training.heads.lessons import Lesson


def own_answers(
    engine: Engine,
    lessons: Iterable[Lesson],
    path: Path,
    *,
    run: str,
    options: Mapping[str, object],
    seed: int,
    on_progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Has the target answer what `path` does not hold yet, and adds it there as tokens.

    `run`: what the answers of one file have in common. Raises InputError where the file is another
    run's or cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with Ledger(path, run=run) as ledger:
        return run_batch(
            engine,
            (Task(lesson.id, lesson.request) for lesson in lessons),
            ledger,
            options=options,
            seed=seed,
            on_progress=on_progress,
            told=_tokens,
        )


def read_answers(path: Path) -> dict[str, Sequence[int]]:
    """The answers' tokens by lesson, the ending EOS among them."""
    answers: dict[str, Sequence[int]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                if "tokens" in values:
                    answers[values["id"]] = values["tokens"]
    return answers


def _tokens(result: Result) -> dict[str, object]:
    return {"text": result.text, "tokens": list(result.tokens), "seed": result.seed}
