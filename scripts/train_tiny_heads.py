"""Trains a head for the bundled model on the model's own answers to its own tasks.

python scripts/train_tiny_heads.py --head medusa --minutes 15 --out build/heads/medusa
"""

import argparse
import json
from pathlib import Path
from random import Random

import torch
from rich.console import Console

import mmspec
from mmspec.cli.console import mistakes_told, quiet_transformers
from mmspec.training.heads import Report, Unwatched, train_head
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", default="medusa", help="medusa, eagle2, eagle3, glide")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--prompts", type=int, default=60, help="of each task")
    parser.add_argument("--out", type=Path, required=True, help="the head's folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    console = Console(highlight=False)
    quiet_transformers()
    torch.set_num_threads(1)  # the model is too small to gain from more
    with mistakes_told(Console(stderr=True)):
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
