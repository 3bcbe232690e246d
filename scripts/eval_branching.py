"""What two ways to branch are worth at the same number of nodes: BestBranching and CaPE.

    python scripts/eval_branching.py --out build/branching.json
    python scripts/eval_branching.py --budgets 8 16 --temperature 0 --questions 12

The bundled model answers questions of several tasks, drafted for by its sibling. Every step drafts
with the same budget (`decode.controller=fixed`), so the clock plays no part and the figures repeat
exactly. `tokens a step` is the acceptance length, `nodes` what was scored a step beside node 0,
`forwards` how many of the draft model there were a step.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.bench.suites import Question, Task
from mmspec.bench.suites import fitted as fitted_to
from mmspec.drafters.draft_model import DraftModel
from mmspec.engine import Engine
from mmspec.state import Prompt
from mmspec.target.load import load_model, load_processor, resolve_path
from mmspec.training.tiny.data import caption, quote, receipt, story

TASKS = {"receipt": receipt, "caption": caption, "quote": quote, "story": story}
WAYS: dict[str, dict[str, Any]] = {
    "best": {"branching": "best", "top_k": 4},
    "best, one path": {"branching": "best", "top_k": 1},
    "cape": {"branching": "cape"},
}


@dataclass(frozen=True)
class Row:
    """One way to branch at one budget, all questions of a task together."""

    task: str
    way: str
    budget: int
    tokens_per_step: float
    nodes_per_step: float
    forwards_per_step: float
    steps: int


def tasks(count: int) -> list[Task]:
    made = []
    for name, make in TASKS.items():
        samples = [make(Random(f"branching/{name}/{n}"), held_out=True) for n in range(count)]
        questions = tuple(
            Question(s.prompt_text, images=() if s.image is None else (s.image,)) for s in samples
        )
        made.append(Task(name, questions, 160))
    return made


@contextmanager
def counted(engine: Engine) -> Iterator[list[int]]:
    """Within it, the rows of each forward of the draft model."""
    (drafter,) = engine.drafters
    model, calls = drafter.model, list[int]()  # type: ignore[attr-defined]
    score = model.score

    def noted(trees: Sequence[Any], *args: Any, **options: Any) -> Any:
        calls.append(len(trees))
        return score(trees, *args, **options)

    model.score = noted
    try:
        yield calls
    finally:
        model.score = score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budgets", nargs="+", type=int, default=[4, 8, 16, 32])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--questions", type=int, default=6, help="of each task")
    parser.add_argument("--depth", type=int, default=6, help="of a tree, at most")
    parser.add_argument("--least", type=float, default=0.0, help="confidence of a path, at least")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    target, draft = resolve_path("tiny-vlm"), resolve_path("nano-vlm")
    model, processor = load_model(target, dtype="float64"), load_processor(target)
    small, its_processor = load_model(draft, dtype="float64"), load_processor(draft)
    rows, texts = list[Row](), dict[tuple[str, int], list[tuple[int, ...]]]()
    for budget in args.budgets:
        for way, options in WAYS.items():
            drafter = DraftModel(
                small, its_processor, max_depth=args.depth, min_confidence=args.least, **options
            )
            engine = mmspec.load(
                model,
                processor,
                drafter=drafter,
                overrides={"decode.controller": "fixed", "decode.max_nodes": budget},
            )
            for task in tasks(args.questions):
                prompts = list(_prompts(task, engine))
                with counted(engine) as calls:
                    results = [
                        engine.generate(
                            prompt,
                            max_new_tokens=task.max_new_tokens,
                            temperature=args.temperature,
                            top_k=0,
                            seed=number,
                        )
                        for number, prompt in enumerate(prompts)
                    ]
                said = [tuple(result.tokens) for result in results]
                assert texts.setdefault((task.name, 0), said) == said, "another text"
                rows.append(_row(task.name, way, budget, results, sum(calls)))
    Console().print(table(rows, args.budgets))
    if args.out is not None:
        report = {
            "mmspec": mmspec.__version__,
            **{name: value for name, value in vars(args).items() if name != "out"},
            "rows": [asdict(row) for row in rows],
        }
        write_report(args.out, this_machine(threads=torch.get_num_threads()), report)


def _prompts(task: Task, engine: Engine) -> Iterator[Prompt]:
    assert engine.inputs is not None
    for question in task.questions:
        fitting = fitted_to(question, engine.inputs, 4096)
        assert fitting is not None
        yield fitting.prompt


def _row(task: str, way: str, budget: int, results: Sequence[mmspec.Result], forwards: int) -> Row:
    steps = sum(result.stats.steps for result in results)
    accepted = sum(
        length * count
        for result in results
        for length, count in result.stats.accepted_lengths.items()
    )
    nodes = sum(count.proposed for result in results for count in result.stats.by_drafter.values())
    return Row(task, way, budget, 1 + accepted / steps, nodes / steps, forwards / steps, steps)


def table(rows: Sequence[Row], budgets: Sequence[int]) -> Table:
    shown = Table(title="tokens a step (nodes, forwards of the draft model)")
    for column in ("task", "way", *(f"up to {budget} nodes" for budget in budgets)):
        shown.add_column(column)
    for task, way in dict.fromkeys((row.task, row.way) for row in rows):
        own = {row.budget: row for row in rows if (row.task, row.way) == (task, way)}
        cells = [
            f"{row.tokens_per_step:.2f} ({row.nodes_per_step:.1f}, {row.forwards_per_step:.1f})"
            for row in (own[budget] for budget in budgets)
        ]
        shown.add_row(task, way, *cells)
    return shown


if __name__ == "__main__":
    main()
