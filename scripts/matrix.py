"""Runs every cell of the exactness matrix, or some of them, and writes what came out as JSON.

python scripts/matrix.py --out build/matrix.json
python scripts/matrix.py --cells 500 --seed 1
"""

import argparse
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from matrix import FAMILIES, all_cells, run_cell
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/matrix.json"))
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--cells", type=int, help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, start = Console(), time.perf_counter()
    cells = all_cells(arguments.dtype)
    if arguments.cells is not None:
        cells = random.Random(arguments.seed).sample(cells, min(arguments.cells, len(cells)))
    outcomes = [run_cell(cell) for cell in track(cells, "exactness matrix", console=console)]
    failed = [outcome for outcome in outcomes if outcome.mismatches]
    report = {
        "dtype": arguments.dtype,
        "cells": len(outcomes),
        "failed": len(failed),
        "seconds": round(time.perf_counter() - start, 1),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    write_report(arguments.out, this_machine(threads=1), report)

    table = Table("family", "cells", "tokens", "drafted tokens accepted", "cells that differ")
    for family in FAMILIES:
        own = [outcome for outcome in outcomes if outcome.cell.family == family]
        tokens, accepted = sum(o.tokens for o in own), sum(o.accepted for o in own)
        wrong = sum(bool(o.mismatches) for o in own)
        colour = "red" if wrong else "green"
        table.add_row(family, f"{len(own)}", f"{tokens}", f"{accepted}", f"[{colour}]{wrong}[/]")
    console.print(table)
    for outcome in failed:
        console.print(f"[red]{outcome.cell}[/]: {'; '.join(outcome.mismatches)}")
    console.print(f"{len(cells)} cells, {len(failed)} differ; written to {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
