"""Runs a script where there is a CUDA device, or seems to be: `python -m pretend SCRIPT ...`."""

import runpy
import sys
from collections import Counter
from pathlib import Path

from pretend.device import device

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
with device() as cuda:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        waits = Counter(map(str, cuda.waits))
        print(f"{len(cuda.waits)} waits for the device:", file=sys.stderr)
        for wait, count in waits.most_common(20):
            print(f"{count:8}  {wait}", file=sys.stderr)
