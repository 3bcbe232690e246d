"""Plays random scenarios and compares every answer with plain decoding alone (tests/fuzz).

python scripts/fuzz.py --seed 0 --seconds 3600
"""

import argparse
import logging
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from fuzz import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first scenario")
    parser.add_argument("--count", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--family", help="this one in each scenario")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("mmspec").setLevel(logging.CRITICAL)  # of drafters that are to fail
    start, failed, done, tokens, accepted, requests = time.perf_counter(), 0, 0, 0, 0, 0
    refused: dict[str, int] = {}
    ties = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        if time.perf_counter() - start > arguments.seconds:
            break
        try:
            report = run(seed, family=arguments.family)
            wrong, title = report.wrong, report.title
            tokens, accepted = tokens + report.tokens, accepted + report.accepted
            requests, ties = requests + report.requests, ties + report.ties
            if report.refused is not None:
                refused[report.refused] = refused.get(report.refused, 0) + 1
        except KeyboardInterrupt:
            break
        except Exception:
            wrong, title = [traceback.format_exc()], "raised"
        done += 1
        if wrong:
            failed += 1
            family = f" --family {arguments.family}" if arguments.family else ""
            print(f"FAILED {title}\n  python scripts/fuzz.py --seed {seed} --count 1{family}")
            for each in wrong:
                print("   ", each[:3000])
            sys.stdout.flush()
    for why, count in sorted(refused.items()):
        print(f"refused {count} times: {why}")
    spent = time.perf_counter() - start
    print(
        f"{done} scenarios, {failed} failed; {requests} texts, {tokens} tokens, {accepted} drafted "
        f"ones accepted; {ties} ties of float32; {spent:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
