"""Plays random scenarios and compares every answer with plain decoding alone (tests/fuzz).

python scripts/fuzz.py --seed 0 --seconds 3600
"""

import argparse
import logging
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from fuzz import KINDS, run
from fuzz.architectures import names, take_in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first scenario")
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--kind", choices=["engine", *KINDS], help="of scenario; all in turn")
    parser.add_argument("--family", help="this one in each scenario: of tests/families, or any")
    parser.add_argument(
        "--architectures",
        action="store_true",
        help="families are all that transformers has, as scripts/sweep_models.py builds them",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("mmspec").setLevel(logging.CRITICAL)  # of drafters that are to fail
    start, failed, done, tokens, accepted, requests = time.perf_counter(), 0, 0, 0, 0, 0
    refused: dict[str, int] = {}
    ties, kinds = 0, Counter[str]()
    every = names() if arguments.architectures else [arguments.family]
    is_of_engine = arguments.architectures or arguments.family is not None
    turns = ["engine"] if is_of_engine else [k for kind in KINDS for k in ("engine", kind)]
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        family, kind = every[seed % len(every)], arguments.kind or turns[seed % len(turns)]
        if time.perf_counter() - start > arguments.seconds:
            break
        try:
            if family:
                take_in(family)
            report = run(seed, kind=kind, family=family)
            wrong, title = report.wrong, report.title
            tokens, accepted = tokens + report.tokens, accepted + report.accepted
            requests, ties = requests + report.requests, ties + report.ties
            kinds.update(report.kinds)
            if report.refused is not None:
                refused[report.refused] = refused.get(report.refused, 0) + 1
        except KeyboardInterrupt:
            break
        except Exception:
            wrong, title = [traceback.format_exc()], "raised"
        done += 1
        if wrong:
            failed += 1
            named = f" --family {family}" if family else ""
            print(f"FAILED {title}")
            print(f"  python scripts/fuzz.py --seed {seed} --count 1 --kind {kind}{named}")
            for each in wrong:
                print("   ", each[:3000])
            sys.stdout.flush()
    for why, count in sorted(refused.items()):
        print(f"refused {count} times: {why}")
    print("rounds:", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    spent = time.perf_counter() - start
    print(
        f"{done} scenarios, {failed} failed; {requests} texts, {tokens} tokens, {accepted} drafted "
        f"ones accepted; {ties} ties of what float32 rounds; {spent:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
