"""Checks mmspec on this machine's GPU, and measures it: one command, ten minutes on a H200.

    python scripts/gpu_check.py --out build/gpu_check.json
    python scripts/gpu_check.py --only kernels timings --minutes 4
    python scripts/gpu_check.py --only train --train
    python scripts/gpu_check.py --device cpu --small          runs everything once, measures nothing

Runs from a checkout, without installing. The file is rewritten with every finding, so that nothing
is lost when a run is ended. docs/gpu.md says what the sections are and how to read them.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ROOT / "build" / "packages"  # pip install --target, where nothing can be installed
NEEDED = ("torch", "transformers", "safetensors", "omegaconf", "yaml", "PIL", "jinja2", "filelock")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION")
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sections together")
    parser.add_argument("--small", action="store_true", help="tiny shapes, no measurement")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds already")
    parser.add_argument("--train", action="store_true", help="also the section train")
    return parser.parse_args()


def find_packages() -> None:
    """Puts the checkout and what was carried along in front of what is installed."""
    sys.path[:0] = [str(ROOT), *([str(CARRIED)] if CARRIED.is_dir() else [])]
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


def main() -> int:
    args = parse()
    find_packages()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.device == "cpu":
        interpret_kernels()

    import torch

    from mmspec.errors import MmspecError
    from mmspec.gpu_check import Setting, has_failed, run_sections, summary_lines
    from mmspec.gpu_check.recorder import SectionResult

    if args.small:
        torch.set_num_threads(1)  # its tensors are too small for more
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("gpu_check: torch sees no GPU here; --device cpu --small tries all")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    setting = Setting(device, args.small, args.minutes, args.train)

    def progress(name: str, result: SectionResult) -> None:
        state = result.status if result.status != "running" else f"{result.title} ..."
        print(f"{name}: {state}", flush=True)

    try:
        kept = json.loads(args.out.read_text())["sections"] if args.resume else {}
        results = run_sections(setting, args.only, out=args.out, kept=kept, progress=progress)
    except MmspecError as error:
        raise SystemExit(f"gpu_check: {error}") from error
    print(*summary_lines(results), f"written to {args.out}", sep="\n", flush=True)
    lost = [name for name, result in results.items() if result.status == "lost"]
    if lost:  # this process has lost the GPU; another one has it
        again = ["--only", *lost, "--resume", "--out", str(args.out), "--device", args.device]
        again += ["--minutes", str(max(setting.left_s, 60) / 60)]
        again += [flag for flag in ("--small", "--train") if getattr(args, flag[2:])]
        subprocess.run([sys.executable, __file__, *again], check=False)
        return 1
    return 1 if has_failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
