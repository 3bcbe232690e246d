"""What mmspec itself costs: a step and a token, everything but the model's forwards.

    python scripts/bench_overhead.py --out build/overhead.json

A random Llama with a vocabulary of 49,152 and 30 small layers decodes text that repeats itself,
with a drafter that knows the continuation, so that the trees are full and much is accepted. Time
is this thread's CPU time (single-threaded; another process does not count), by run the sum over
the decoding, from the first token on, less what is spent between token ids and logits. Speculative
and plain runs are interleaved.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import mmspec
from mmspec.bench.harness import in_turns, write_report
from mmspec.bench.machine import this_machine
from mmspec.draft_guide import DraftGuide
from mmspec.engine import Engine
from mmspec.requests import Request
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.target import Target
from mmspec.tree import TokenTree

VOCAB, NEW_TOKENS, PROMPT_TOKENS, PAIRS = 49_152, 256, 512, 9
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "t1": {"temperature": 1.0, "top_k": 0},
    "warped": {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    },
}


class Known:
    """Drafts the known continuation as a chain of 7, with a wrong sibling at every node."""

    name = "known"

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "Known":
        self._prompt_length = prompt.num_tokens
        return self

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        done = len(tokens) - self._prompt_length
        draft = self._tokens[done : done + 7]
        nodes, parents, parent = [tokens[-1]], [-1], 0
        for token in draft:
            parents += [parent, parent]
            nodes += [token, (token + 1) % VOCAB]
            parent = len(nodes) - 2
        count = len(nodes) - 1
        return TokenTree(
            tuple(nodes),
            tuple(parents),
            (1.0, *[0.9, 0.1] * (count // 2)),
            ("", *["known"] * count),
        )

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None: ...

    def close(self) -> None: ...


class Forward:
    """Stands in for the tower that runs a target's score calls, and counts the thread time spent
    in it. A `forward` set on the model would be somebody's hand in it: no tower would run."""

    def __init__(self, target: Target) -> None:
        blocks = target.attachments.blocks
        assert blocks is not None and blocks.tower is not None, "the model has no tower"
        self.seconds = 0.0
        self._tower = blocks.tower
        blocks.tower = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def __call__(self, **call: Any) -> Any:
        start = time.thread_time()
        try:
            return self._tower(**call)
        finally:
            self.seconds += time.thread_time() - start


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=30,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(config).eval()


def measure(engine: Engine, forward: Forward, request: Request) -> tuple[float, mmspec.Result]:
    """(thread seconds of decoding outside of the model's forwards, the result)."""
    stream = engine.stream(request, reuse=False, ignore_eos=True)
    steps = stream.steps()
    next(steps)  # the prompt
    before = forward.seconds
    start = time.thread_time()
    for _ in steps:
        pass
    spent = time.thread_time() - start - (forward.seconds - before)
    return spent, stream.result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/overhead.json"))
    parser.add_argument("--only", choices=["greedy", "t1", "warped"])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    arguments = parser.parse_args()
    pairs = arguments.pairs
    torch.set_num_threads(1)
    machine = this_machine(threads=1)
    model = build_model()
    plain = mmspec.load(model, drafter="none")
    forward = Forward(plain.target)
    prompt = torch.randint(0, VOCAB, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    table = Table(
        "sampling", "tokens a step", "us a step", "us a token", "plain, us a token", "ratio"
    )
    report: dict[str, Any] = {"pairs": pairs, "rows": {}}
    for name, sampling in SAMPLINGS.items():
        if arguments.only not in (None, name):
            continue
        request = Request({"input_ids": prompt}, max_new_tokens=NEW_TOKENS, seed=3, **sampling)
        truth = plain.generate(request, ignore_eos=True).tokens
        drafting = Engine(plain.target, None, [Known(truth)], controller="fixed", max_nodes=14)
        engines = {"plain": plain, "speculative": drafting}

        def one(
            kind: str, engines: dict[str, Engine] = engines, request: Request = request
        ) -> tuple[float, mmspec.Result]:
            return measure(engines[kind], forward, request)

        found = in_turns(list(engines), one, rounds=pairs)
        assert all(result.tokens == truth for runs in found.values() for _, result in runs)
        samples = {kind: [spent for spent, _ in runs] for kind, runs in found.items()}
        stats = found["speculative"][-1][1].stats
        steps = stats.steps
        spent, spent_plain = (statistics.median(samples[k]) for k in ("speculative", "plain"))
        row = {
            "tokens_per_step": stats.tokens_per_step,
            "us_per_step": 1e6 * spent / steps,
            "us_per_token": 1e6 * spent / NEW_TOKENS,
            "plain_us_per_token": 1e6 * spent_plain / NEW_TOKENS,
            "ratio_per_token": spent / spent_plain,
            "allowed_us_greedy": (1000 * steps + 100 * NEW_TOKENS) / steps,
            "samples_s": samples,
        }
        report["rows"][name] = row
        table.add_row(
            name,
            f"{row['tokens_per_step']:.2f}",
            f"{row['us_per_step']:.0f}",
            f"{row['us_per_token']:.0f}",
            f"{row['plain_us_per_token']:.0f}",
            f"{row['ratio_per_token']:.2f}",
        )
    write_report(arguments.out, machine, report)
    Console().print(table, f"median of {pairs} interleaved pairs; written to {arguments.out}")


if __name__ == "__main__":
    main()
