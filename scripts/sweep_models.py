"""Tries every decoder of the installed transformers on a tiny random model: which are decoded here,
how, and whether their texts are those of plain decoding and of transformers' generate.

python scripts/sweep_models.py --out build/models.json
python scripts/sweep_models.py llama gemma3n qwen2_audio   # these, into the same file
python scripts/sweep_models.py --docs docs/models.md build/models-5.17.json build/models-5.23.json
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from rich.console import Console

from mmspec.sweep import SweepLimits, Trial, architectures, markdown, rich_table, sweep

_BEGIN = "<!-- scripts/sweep_models.py writes what follows -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; none: all. With --docs: files")
    parser.add_argument("--out", type=Path, default=Path("build/models.json"))
    parser.add_argument("--seconds", type=float, default=180.0, help="limit for one family")
    parser.add_argument("--docs", type=Path, help="write the tables of the files into this one")
    arguments = parser.parse_args()
    if arguments.docs is not None:
        write_docs(arguments.docs, [Path(name) for name in arguments.names])
        return 0
    console = Console()
    trials = read(arguments.out) if arguments.names and arguments.out.exists() else {}
    limits = SweepLimits(seconds=arguments.seconds)
    for trial in sweep(architectures(arguments.names), limits=limits):
        trials[trial.model_type] = trial
        console.print(
            f"{trial.model_type:28} {trial.verdict:8} {trial.shape:6} {trial.attention:6} "
            f"{trial.seconds:6.1f} s  {trial.reason or trial.attention_failure}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        write(arguments.out, trials)
    console.print(rich_table(list(trials.values())))
    return 1 if any(trial.verdict == "differs" for trial in trials.values()) else 0


def write(path: Path, trials: dict[str, Trial]) -> None:
    report = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "trials": [asdict(trial) for trial in trials.values()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def read(path: Path) -> dict[str, Trial]:
    found = json.loads(path.read_text())["trials"]
    return {values["model_type"]: Trial(**values) for values in found}


def write_docs(path: Path, files: list[Path]) -> None:
    """Replaces what stands behind the mark in `path`; the newest version comes last in `files`."""
    by_version = {
        json.loads(file.read_text())["transformers"]: list(read(file).values()) for file in files
    }
    before = path.read_text().split(_BEGIN)[0]
    versions = " and ".join(by_version)
    path.write_text(f"{before}{_BEGIN}\n\ntransformers {versions}\n\n{markdown(by_version)}")


if __name__ == "__main__":
    sys.exit(main())
