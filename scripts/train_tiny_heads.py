"""Trains a head for the bundled model on the model's own answers to its own tasks.

python scripts/train_tiny_heads.py --head medusa --minutes 15 --out build/heads/medusa
python scripts/train_tiny_heads.py --head medusa --evaluate 8 --out build/heads/medusa
"""

import argparse
import json
from pathlib import Path
from random import Random

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

import mmspec
from mmspec.cli.console import mistakes_told, quiet_transformers
from mmspec.training.heads import Report, Unwatched, train_head
from mmspec.training.heads.methods import DRAFTERS
from mmspec.training.tiny.data import TASKS


def write_prompts(folder: Path, *, each: int) -> Path:
    """`each` prompts of every task, of words that the model's own training may show, as JSONL with
    the pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for task, make in TASKS.items():
        for number in range(each):
            sample = make(Random(f"heads/{task}/{number}"))
            record = {"id": f"{task}-{number}", "prompt": sample.prompt_text}
            if sample.image is not None:
                record["image"] = f"{record['id']}.png"
                sample.image.save(folder / record["image"])
            lines.append(json.dumps(record) + "\n")
    path = folder / "prompts.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


class Told(Unwatched):
    """A line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_report(self, report: Report) -> None:
        found = report.acceptance
        if found is None:
            return
        parts = [f"step {report.step:,}", f"{found.tokens_a_step:.2f} tokens a step"]
        parts += [f"loss {report.losses['loss']:.2f}"] if report.losses else []  # none at step 0
        shares = " ".join(f"{share:.0%}" for share in found.top_1)
        self._console.print(" · ".join([*parts, f"by depth {shares}"]))


def tokens_a_step(drafter: str, path: Path, *, samples: int) -> dict[str, float]:
    """By task: of greedy answers to pictures and texts that no training showed, always drafting."""
    name = drafter.rpartition("+")[2]
    overrides = {} if name == "prompt_lookup" else {f"drafter.{name}.path": str(path)}
    engine, found = mmspec.load("tiny-vlm", drafter=drafter, overrides=overrides), {}
    for task, make in TASKS.items():
        tokens = steps = 0
        for number in range(samples):
            sample = make(Random(f"heads held out/{task}/{number}"), held_out=True)
            result = engine.generate(
                sample.prompt_text,
                images=() if sample.image is None else sample.image,
                max_new_tokens=200,
                temperature=0,
                speculate=True,
            )
            tokens, steps = tokens + result.stats.new_tokens, steps + result.stats.steps
        found[task] = tokens / max(steps, 1)
    return found


def table(head: str, path: Path, *, samples: int) -> Table:
    """What the head is worth, alone and beside a drafter that copies."""
    name = DRAFTERS[head]
    drafters = ("prompt_lookup", name, f"prompt_lookup+{name}")
    found = [tokens_a_step(drafter, path, samples=samples) for drafter in drafters]
    shown = Table("task", *drafters, box=MARKDOWN, title="tokens a step")
    for task in TASKS:
        shown.add_row(task, *(f"{values[task]:.1f}" for values in found))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", default="medusa", help="medusa, eagle2, eagle3, glide")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--prompts", type=int, default=60, help="of each task")
    parser.add_argument("--out", type=Path, required=True, help="the head's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate", type=int, metavar="N", help="train nothing; N samples a task")
    options = parser.parse_args()
    console = Console(highlight=False)
    quiet_transformers()
    torch.set_num_threads(1)  # the model is too small to gain from more
    with mistakes_told(Console(stderr=True)):
        if options.evaluate:
            console.print(table(options.head, options.out, samples=options.evaluate))
            return
        trained = train_head(
            mmspec.load("tiny-vlm"),
            str(write_prompts(options.out / "training" / "prompts", each=options.prompts)),
            head=options.head,
            out=options.out,
            minutes=options.minutes,
            resume=options.resume,
            overrides=options.set,
            watcher=Told(console),
        )
    console.print(f"{trained.parameters:,} parameters · --set {trained.override}")


if __name__ == "__main__":
    main()
