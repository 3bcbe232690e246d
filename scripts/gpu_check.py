"""Checks mmspec on this machine's GPU, and measures it: one command, ten minutes on a H200.

    python scripts/gpu_check.py --smoke                       does everything run at all? 3 minutes
    python scripts/gpu_check.py --out build/gpu_check.json
    python scripts/gpu_check.py --only kernels timings --minutes 4
    python scripts/gpu_check.py --only train --train
    python scripts/gpu_check.py --device cpu --small          runs everything once, measures nothing

Runs from a checkout, without installing. The file is rewritten with every finding, so that nothing
is lost when a run is ended; on a GPU each section has a process of its own. docs/gpu.md says what
the sections are and how to read them.
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
    parser.add_argument("--minutes", type=float, help="for all sections together (9; --smoke: 3)")
    parser.add_argument("--small", action="store_true", help="tiny shapes, no measurement")
    parser.add_argument("--smoke", action="store_true", help="all of it once, --small, on the GPU")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds already")
    parser.add_argument("--train", action="store_true", help="also the section train")
    parser.add_argument("--without", nargs="+", default=[], metavar="PART", help=WITHOUT)
    parser.add_argument("--together", action="store_true", help="all sections in this process")
    parser.add_argument("--apart", action="store_true", help="each in its own, on a CPU too")
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.small |= args.smoke
    args.minutes = args.minutes or (3.0 if args.smoke else 9.0)
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


def run_apart(args: argparse.Namespace) -> int:
    """Each section in a process of its own."""
    from mmspec.errors import MmspecError
    from mmspec.gpu_check import Compiling, Conductor, Times, chosen_sections, plan_lines, tables
    from mmspec.gpu_check.report import has_failed, summary_lines

    def command(section: str, part: Path, without: Sequence[str]) -> list[str]:
        own = [sys.executable, __file__, "--together", "--wait", "--only", section]
        own += ["--out", str(part), "--device", args.device]
        own += [flag for flag in ("--small", "--train") if getattr(args, flag[2:])]
        return own + (["--without", *args.without, *without] if args.without or without else [])

    try:
        shares = {n: s.share for n, s in chosen_sections(args.only, trains=args.train).items()}
    except MmspecError as error:
        raise SystemExit(f"gpu_check: {error}") from error
    print(*plan_lines(shares, args.minutes), sep="\n", flush=True)
    signal.signal(signal.SIGTERM, lambda *told: sys.exit(143))  # and what it has started with it
    parts = ROOT / "build" / f"{args.out.stem}.parts"
    conductor = Conductor(
        shares,
        command,
        out=args.out,
        parts=parts,
        times=Times(args.minutes),
        kept=json.loads(args.out.read_text())["sections"] if args.resume else {},
        progress=lambda line: print(time.strftime("%H:%M:%S"), line, flush=True),
    )
    compiling = None
    if args.device != "cpu" and shares.keys() != {"train"}:
        compiling = Compiling(parts / "compiled.log")
        if "smoke" not in shares:  # what is measured first is not disturbed
            compiling.wait()
    try:
        sections = conductor.run()
    finally:
        if compiling is not None:
            compiling.stop()
    print(*summary_lines(sections), *([] if args.small else tables(sections)), sep="\n")
    print(f"written to {args.out}")
    return 1 if has_failed(sections) else 0


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
    if args.apart or not (args.together or args.device == "cpu"):
        return run_apart(args)

    import torch

    from mmspec.errors import MmspecError
    from mmspec.gpu_check import Setting, has_failed, run_sections, summary_lines, tables
    from mmspec.gpu_check.recorder import SectionResult, plain

    if args.wait:
        Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        args.minutes = float(sys.stdin.readline() or 0) / 60
    if args.small:
        torch.set_num_threads(1)  # its tensors are too small for more
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("gpu_check: torch sees no GPU here; --device cpu --small tries all")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    setting = Setting(device, args.small, args.minutes, args.train, tuple(args.without))

    def progress(name: str, result: SectionResult) -> None:
        state = result.status if result.status != "running" else f"{result.title} ..."
        print(f"{name}: {state}", flush=True)

    try:
        kept = json.loads(args.out.read_text())["sections"] if args.resume else {}
        results = run_sections(setting, args.only, out=args.out, kept=kept, progress=progress)
    except MmspecError as error:
        raise SystemExit(f"gpu_check: {error}") from error
    sections = {name: plain(result) for name, result in results.items()}
    print(*summary_lines(sections), *([] if args.small else tables(sections)), sep="\n")
    print(f"written to {args.out}")
    return 1 if has_failed(sections) else 0


if __name__ == "__main__":
    sys.exit(main())
