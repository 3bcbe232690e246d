"""What a run tells of tasks that failed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmspec.answers import unbegun_result
from mmspec.batch import Ledger, Task, run_batch
from mmspec.errors import InputError
from mmspec.requests import Request, Result


class Refusing:
    """An engine that answers nothing."""

    def generate_each(self, asked: Iterator[Request], **_: object) -> Iterator[tuple[int, Result]]:
        for number, _request in enumerate(asked):
            yield number, unbegun_result("error", InputError("4 images, expected 1"))


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (Task("4", Request("a")), "4: 4 images, expected 1"),
        (Task("a.png", Request("a")), "a.png: 4 images, expected 1"),
        (Task("4", None, InputError("p.csv, row 3: is no CSV")), "p.csv, row 3: is no CSV"),
    ],
)
def test_a_failure_is_told_with_its_place_once(tmp_path: Path, task: Task, told: str) -> None:
    made: Any = Refusing
    with Ledger(tmp_path / "out.jsonl", run="r") as ledger:
        tally = run_batch(made, [task, task], ledger, options={}, seed=0)
    again = f"{task.id}: this id was there before; give each line its own"
    assert tally.failures == [told, again]
