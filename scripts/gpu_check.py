"""Checks mmspec on this machine's GPU, and measures it: one command, ten minutes on a H200.

    python scripts/gpu_check.py --smoke                       does everything run at all? 4 minutes
    python scripts/gpu_check.py --out build/gpu_check.json
    python scripts/gpu_check.py --only kernels timings --minutes 4
    python scripts/gpu_check.py --only train                  or --train: the rest as well
    python scripts/gpu_check.py --device cpu --small          runs everything once, measures nothing

Runs from a checkout, without installing. The file is rewritten with every finding, so that nothing
is lost when a run is ended; each section has a process of its own. docs/gpu.md says what the
sections are and how to read them.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from site import addsitedir
from threading import Thread

BEGUN = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "build" / "packages"  # pip install --target, where nothing can be installed
COMPILED = ROOT / "build" / "triton_cache"  # kept from one run to the next
WITHOUT = "attention backends, early_begin (of kernels)"
NEEDED = ("torch", "transformers", "safetensors", "omegaconf", "yaml", "PIL", "jinja2", "filelock")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION")
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, help="for all of it (9; --smoke: 4)")
    parser.add_argument("--small", action="store_true", help="tiny shapes, no measurement")
    parser.add_argument("--smoke", action="store_true", help="all of it once, --small, on the GPU")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds already")
    parser.add_argument("--train", action="store_true", help="also the section train")
    parser.add_argument("--without", nargs="+", default=[], metavar="PART", help=WITHOUT)
    parser.add_argument("--section", help=argparse.SUPPRESS)  # this process's own
    args = parser.parse_args()
    args.small |= args.smoke
    args.minutes = args.minutes or (4.0 if args.smoke else 9.0)
    return args


def find_packages() -> None:
    """Puts the checkout and what was carried along in front of what is installed."""
    sys.path[:0] = [str(ROOT), *([str(CARRIED)] if CARRIED.is_dir() else [])]
    if CARRIED.is_dir():
        addsitedir(str(CARRIED))  # what its packages say of further folders
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"gpu_check: {', '.join(missing)} cannot be imported here. Where nothing can be "
            f"installed, fetch them elsewhere and bring the folder along:\n"
            f"    pip install --no-deps --target build/packages {' '.join(missing)}"
        )


def interpret_kernels() -> None:
    """On a CPU, Triton's interpreter, as the tests mend it: before anything imports triton."""
    tests = ROOT / "tests"
    if (tests / "interpreted.py").is_file() and find_spec("triton") is not None:
        sys.path.append(str(tests))
        __import__("interpreted")


def end_with(parent: int) -> None:
    """Ends this process once the one that started it is gone: nobody else would."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def conduct(args: argparse.Namespace) -> int:
    """Each section in a process of its own, started as this one was."""
    from mmspec.errors import MmspecError
    from mmspec.gpu_check import (
        Compiling,
        Conductor,
        Times,
        has_failed,
        plan_lines,
        report_lines,
        shares_of,
    )

    def command(section: str, part: Path, without: Sequence[str]) -> list[str]:
        launcher = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
        own = [sys.executable, *launcher, "--section", section, "--out", str(part)]
        own += ["--device", args.device]
        own += ["--small"] if args.small else []
        return own + (["--without", *args.without, *without] if args.without or without else [])

    try:
        shares = shares_of(args.only, trains=args.train)
    except MmspecError as error:
        raise SystemExit(f"gpu_check: {error}") from error
    left = args.minutes - (time.monotonic() - BEGUN) / 60
    print(*plan_lines(shares, left), sep="\n", flush=True)
    signal.signal(signal.SIGTERM, lambda *told: sys.exit(143))  # and what it has started with it
    parts = ROOT / "build" / f"{args.out.stem}.parts"
    is_kept = args.resume and args.out.is_file()
    kept = json.loads(args.out.read_text())["sections"] if is_kept else {}
    conductor = Conductor(
        shares,
        command,
        out=args.out,
        parts=parts,
        times=Times(left),
        kept=kept,
        progress=lambda line: print(time.strftime("%H:%M:%S"), line, flush=True),
    )
    compiling = None
    if args.device != "cpu" and shares.keys() != {"train"}:
        compiling = Compiling(parts / "compiled.log")
    try:
        if compiling is not None and "smoke" not in shares:  # what is measured is not disturbed
            compiling.wait()
        conductor.run()
    finally:  # also where this process is told to end
        if compiling is not None:
            compiling.stop()
        print(*report_lines(conductor.sections, is_small=args.small), sep="\n")
        print(f"written to {args.out}", flush=True)
    return 1 if has_failed(conductor.sections, is_small=args.small) else 0


def run_one(args: argparse.Namespace) -> int:
    """The section that this process is for, once it is told how many seconds it has."""
    import torch

    from mmspec.gpu_check import SECTIONS, Setting, run_section

    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    told = sys.stdin.readline()
    if not told:  # whoever started this one has ended
        return 1
    # Its tensors on the CPU are small, and while kernels are compiled all other cores are busy: a
    # team of threads would wait for one of them in each operation.
    torch.set_num_threads(1)
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("gpu_check: torch sees no GPU here; --device cpu --small tries all")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    setting = Setting(device, args.small, float(told) / 60, tuple(args.without))
    run_section(args.section, SECTIONS[args.section], setting, out=args.out)
    return 0


def main() -> int:
    args = parse()
    find_packages()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    if args.device == "cpu":
        interpret_kernels()
    else:
        COMPILED.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRITON_CACHE_DIR", str(COMPILED))
    return run_one(args) if args.section else conduct(args)


if __name__ == "__main__":
    sys.exit(main())
