"""Train the bundled vision-language model and write it as a from_pretrained folder.

    python scripts/train_tiny_vlm.py --minutes 75 --out mmspec/bundled/tiny-vlm
    python scripts/train_tiny_vlm.py --minutes 75 --out mmspec/bundled/tiny-vlm --resume

The closing evaluation (held-out samples, freely generated) is written as evaluation.json beside
the weights. Resuming a run whose time is used up only exports and evaluates; so does

    python scripts/train_tiny_vlm.py --evaluate --out mmspec/bundled/nano-vlm \\
        --target mmspec/bundled/tiny-vlm

for a finished model without its checkpoint, here with its acceptance as the other's drafter.

    python scripts/train_tiny_vlm.py --long mmspec/bundled/tiny-vlm --minutes 40 --out OUT
    python scripts/train_tiny_vlm.py --needles --out OUT --context 131072

take a finished model, scale its positions (YaRN) and train it on long texts for a while (with
`--minutes 0` the positions are all that changes), and measure what a model finds in texts of 1k to
32k tokens, with its context as it is or scaled.
"""

import argparse
import json
import signal
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mmspec.target.load import load_model
from mmspec.training.tiny.build import SIZES
from mmspec.training.tiny.evaluate import SUITE
from mmspec.training.tiny.needles import LENGTHS, measure
from mmspec.training.tiny.report import save_report, write_report
from mmspec.training.tiny.train import Settings, State, export, train


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes",
        type=float,
        default=75.0,
        help="training time; on a CPU, processor time a thread",
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished model")
    parser.add_argument("--checkpoint", type=Path, help="default: OUT.checkpoint.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=20, help="evaluated at the end, a task")
    parser.add_argument("--tasks", nargs="*", choices=SUITE, default=list(SUITE))
    parser.add_argument(
        "--target", type=Path, help="folder of the model that this one is to draft for"
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="only evaluate the finished model in OUT"
    )
    parser.add_argument(
        "--long", type=Path, metavar="FOLDER", help="a finished model that is to learn long texts"
    )
    parser.add_argument(
        "--needles", action="store_true", help="only measure needles and quotes in long texts"
    )
    parser.add_argument("--documents", type=int, default=4, help="for each length and task")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--context", type=int, help="scale the positions to so many (--needles)")
    parser.add_argument("--log", type=Path, help="JSON lines, one a step")
    return parser.parse_args()


def learn(options: argparse.Namespace, settings: Settings) -> bool:
    """Trains with a progress bar; False if it was told to stop before the time was used up."""
    stop_asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop_asked.append(number))
    errors: dict[str, float] = {}  # smoothed
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        row = bar.add_task("starting", total=settings.minutes * 60)
        reports = train(settings)
        for report in reports:
            for task, error in report.errors.items():
                errors[task] = 0.9 * errors.get(task, error) + 0.1 * error
            shown = "  ".join(f"{task} {error:.3f}" for task, error in sorted(errors.items()))
            text = f"{report.stage} {report.step} {report.tokens / 1e6:.2f}M  {shown}"
            bar.update(row, completed=report.trained_s, description=text)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(report)) + "\n")
            if stop_asked:
                reports.close()  # writes the checkpoint
                return False
    return True


def finish(options: argparse.Namespace, settings: Settings) -> None:
    """Exports the averaged weights of the checkpoint and says what they were trained with."""
    state = State.fresh(settings)
    state.load(settings.checkpoint)
    export(state.average.eval(), options.out)
    facts = {
        "tokens": state.tokens,
        "steps": state.step,
        "trained_s": round(state.trained_s),
        "seed": options.seed,
        "size": options.size,
        **({"long_from": options.long.name} if options.long else {}),
        "parameters": sum(parameter.numel() for parameter in state.average.parameters()),
    }
    save_report(options.out, facts)


def find(options: argparse.Namespace) -> None:
    """Prints what the model in OUT finds in long texts, a line as soon as it is measured."""
    model = load_model(str(options.out), dtype="float32", context=options.context)
    for task, length, found in measure(
        model, num_documents=options.documents, lengths=options.lengths
    ):
        print(
            f"{task:8} {length:6} questions {found.questions}  exact {found.exact:.3f}  "
            f"tokens right {found.tokens_right:.4f}",
            flush=True,
        )


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.needles:
        find(options)
        return
    if not options.evaluate:
        settings = Settings(
            options.checkpoint or options.out.with_name(options.out.name + ".checkpoint.pt"),
            minutes=options.minutes,
            size=options.size,
            seed=options.seed,
            device=options.device,
            resume=options.resume,
            long_from=options.long,
        )
        if not learn(options, settings):
            return
        finish(options, settings)
    rows = write_report(
        options.out,
        num_samples=options.samples,
        tasks=options.tasks,
        target=options.target,
        device=options.device,
    )
    for task, row in rows:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in asdict(row).items())
        print(f"{task:12} {figures}", flush=True)


if __name__ == "__main__":
    main()
