"""What a bad drafter costs: always wrong, slow, raising, or with much to do before it is wrong.

    python scripts/bench_bad_drafters.py --out build/bad_drafters.json

Decodes some prompts of 200 new tokens with each of them under the automatic controller, and
plainly, interleaved, end to end, by the wall clock and by CPU time; all texts must be identical.
The slow drafter computes for ten times as long as the target's step takes, and is right; the one
that prepares itself takes as long for that, says so, and is always wrong. Each
drafter's engine is new and decodes the first prompt unmeasured in one column, measured in the
other: what a drafter costs is not known before it was asked once.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.interval import spread
from mmspec.bench.machine import refuse_if_busy, this_machine
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import Drafter
from mmspec.engine import Engine
from mmspec.requests import Request
from mmspec.state import Prefill, Preparation, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

WRONG, SLOW, RAISES = "always wrong", "ten times slower", "raises"
LONG = "ten steps to prepare, then wrong"
NEW_TOKENS, PAIRS, DEPTH = 200, 9, 16
QUESTIONS = (
    "Tell me a story about a lighthouse.",
    "What is the sea like at night?",
    "Describe a garden in spring.",
)


def _spin(seconds: float) -> None:
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        pass


class Bad:
    """Its own session; knows the plain texts."""

    def __init__(self, name: str, truths: dict[tuple[int, ...], Sequence[int]], step_s: float):
        self.name, self._truths, self._ten_s = name, truths, 10 * step_s
        self._is_ready = False

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "Bad":
        self._is_ready = self.name != LONG
        return self

    def preparation(self, num_tokens: int) -> Preparation | None:
        return None if self._is_ready else Preparation(steps=10.0)

    def prepare(self, tokens: Sequence[int]) -> None:
        self._is_ready = True
        _spin(self._ten_s)

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        if self.name == RAISES:
            raise RuntimeError("no draft")
        if self.name == SLOW:
            _spin(self._ten_s)
        draft = self._ahead(tokens)[: min(DEPTH, budget)]
        if self.name in (WRONG, LONG):
            draft = [token ^ 1 for token in draft]
        return TokenTree.chain(tokens[-1], draft, [0.95] * len(draft), self.name)

    def _ahead(self, tokens: Sequence[int]) -> list[int]:
        for prompt, truth in self._truths.items():
            if tuple(tokens[: len(prompt)]) == prompt:
                return list(truth[len(tokens) - len(prompt) :])
        return []

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None: ...

    def close(self) -> None: ...


def measure(engine: Engine, request: Request) -> tuple[float, float, mmspec.Result]:
    """(wall seconds, CPU seconds, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = engine.generate(request)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-vlm")
    parser.add_argument("--out", type=Path, default=Path("build/bad_drafters.json"))
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = this_machine(threads=1)
    if not arguments.force:
        refuse_if_busy(machine)
    plain = mmspec.load(arguments.model, drafter="none")
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_new_tokens": NEW_TOKENS}
    requests = [Request(text, ignore_eos=True, reuse=False, **sampling) for text in QUESTIONS]
    truths: dict[tuple[int, ...], Sequence[int]] = {}
    step_s = 1.0
    for request in requests:
        assert plain.inputs is not None and isinstance(request.prompt, str)
        prompt = tuple(plain.inputs.encode(request.prompt).token_ids.tolist())
        result = plain.generate(request)
        truths[prompt] = result.tokens
        step_s = min(step_s, result.stats.times.decode_s / result.stats.steps)
    table = Table("drafter", "first request", "later: wall", "CPU", "texts", "asked")
    rows: dict[str, Any] = {}
    for name in (WRONG, SLOW, RAISES, LONG):
        rows[name] = row = _measured(plain, Bad(name, truths, step_s), requests)
        later, cpu = row["later_wall"], row["later_cpu"]
        table.add_row(
            name,
            f"{row['first']['median']:.3f}x",
            f"{later['median']:.3f}x ({later['low']:.3f}-{later['high']:.3f})",
            f"{cpu['median']:.3f}x ({cpu['low']:.3f}-{cpu['high']:.3f})",
            f"{row['identical']} of {row['texts']} identical",
            f"{row['asked']:.1f} times in {NEW_TOKENS} tokens",
        )
    write_report(arguments.out, machine, {"new_tokens": NEW_TOKENS, "drafters": rows})
    Console().print(table, f"plain time / time; {PAIRS} pairs; written to {arguments.out}")


def _measured(plain: Engine, drafter: Drafter, requests: Sequence[Request]) -> dict[str, Any]:
    """A new engine a pair: first request, then all of them, each beside plain decoding."""
    first, wall, cpu, asked, identical = list[float](), list[float](), list[float](), 0, 0
    for pair in range(PAIRS):
        engine = Engine(plain.target, plain.inputs, [drafter])
        for index, request in enumerate([requests[0], *requests]):
            order = [plain, engine] if (pair + index) % 2 else [engine, plain]
            runs = {id(one): measure(one, request) for one in order}
            ours, theirs = runs[id(engine)], runs[id(plain)]
            identical += ours[2].tokens == theirs[2].tokens
            if index == 0:
                first.append(theirs[0] / ours[0])
                continue
            wall.append(theirs[0] / ours[0])
            cpu.append(theirs[1] / ours[1])
            asked += sum(ours[2].stats.choices.asked.values())
    return {
        "first": asdict(spread(first)),
        "later_wall": asdict(spread(wall)),
        "later_cpu": asdict(spread(cpu)),
        "asked": asked / len(wall),
        "identical": identical,
        "texts": len(wall) + len(first),
    }


if __name__ == "__main__":
    main()
