"""What a score call costs by nodes and context: a tree of n nodes beside node 0 alone.

    python scripts/bench_score.py --out build/score.json
    python scripts/bench_score.py --model tiny-vlm --contexts 128 1024 4096
    python scripts/bench_score.py --random qwen3_5 --shape chain   # with running states

Without `--model` a random Llama (8 layers, hidden 512, 8 heads over 2 KV heads) is scored, or what
`--random` names; mixers with a running state are called once for each depth of a tree, so a chain
is their dearest shape. Two
ways are compared: mmspec's (tree attention, quick linear layers) and the model's own attention
with a mask. In each round every call is made once, one after the other, in an order that turns;
ratios are within a round, intervals of 95% by order statistics for their median. Time is the wall
clock, or with `--cpu-time` (one thread) this thread's, which another process does not count in.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

import mmspec
from mmspec.bench.harness import binary_tree, in_turns, write_report
from mmspec.bench.interval import spread
from mmspec.bench.machine import this_machine
from mmspec.kv import KVCache
from mmspec.state import Placement, Prompt
from mmspec.target import Target
from mmspec.target.linears import quick_linears
from mmspec.tree import TokenTree

WAYS = ("mmspec", "model")


@dataclass(frozen=True)
class Row:
    """One context: milliseconds of each call by (way, nodes), a number a round."""

    context: int
    samples_ms: dict[str, dict[int, list[float]]]

    def median_ms(self, way: str, nodes: int) -> float:
        return statistics.median(self.samples_ms[way][nodes])

    def ratios(self, above: tuple[str, int], below: tuple[str, int]) -> list[float]:
        pairs = (self.samples_ms[way][nodes] for way, nodes in (above, below))
        return [a / b for a, b in zip(*pairs, strict=True)]


_COMMON: dict[str, Any] = {"vocab_size": 4096, "max_position_embeddings": 32_768}
# What takes the time is in the proportions of small models of these families.
RANDOM: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=2, **_COMMON,
        ),
    ),
    "qwen3_5": (  # three gated delta nets to one attention
        Qwen3_5ForCausalLM,
        Qwen3_5TextConfig(
            hidden_size=1024, intermediate_size=3584, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=16,
            **_COMMON,
        ),
    ),
    "lfm2": (  # two short convolutions to one attention
        Lfm2ForCausalLM,
        Lfm2Config(
            hidden_size=1024, intermediate_size=4608, num_hidden_layers=9, num_attention_heads=16,
            num_key_value_heads=8, layer_types=["conv", "conv", "full_attention"] * 3, **_COMMON,
        ),
    ),
    "granite_hybrid": (  # three Mamba2 layers to one attention
        GraniteMoeHybridForCausalLM,
        GraniteMoeHybridConfig(
            hidden_size=1024, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=4,
            layer_types=[*["linear_attention"] * 3, "full_attention"] * 2, mamba_n_heads=32,
            mamba_d_head=64, mamba_d_state=128, num_local_experts=0, shared_intermediate_size=4096,
            position_embedding_type="rope", **_COMMON,
        ),
    ),
}  # fmt: skip


def random_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = RANDOM[name]
    return kind(config).eval()


def tree_of(nodes: int, shape: str) -> TokenTree:
    if shape == "binary":
        return binary_tree(nodes)
    return TokenTree.chain(10, range(11, 10 + nodes), [1.0] * (nodes - 1), "bench")


def measure(
    targets: dict[str, Target],
    context: int,
    nodes: Sequence[int],
    *,
    shape: str,
    rounds: int,
    clock: Callable[[], float],
) -> Row:
    cache, placement = _prefilled(targets["model"], context, max(nodes))

    def one_ms(call: tuple[str, int]) -> float:
        way, count = call
        tree = tree_of(count, shape)
        start = clock()
        targets[way].score([tree], cache, [placement])
        return 1000 * (clock() - start)

    # The first round pays for what is packed.
    samples = in_turns([(way, count) for way in WAYS for count in nodes], one_ms, rounds=rounds)
    return Row(context, {way: {n: samples[way, n] for n in nodes} for way in WAYS})


def _prefilled(target: Target, context: int, nodes: int) -> tuple[KVCache, Placement]:
    generator = torch.Generator().manual_seed(1)
    prompt = Prompt(torch.randint(4, target.vocab_size, (context,), generator=generator))
    cache = target.new_cache()
    return cache, target.prefill(prompt, cache, cache.open(context + nodes)).placement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder, hub name or bundled name; default: random Llama")
    parser.add_argument("--random", choices=RANDOM, default="llama")
    parser.add_argument("--shape", choices=("binary", "chain"), default="binary")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 4096, 16_384])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/score.json"))
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time counts one thread; add --threads 1")
    torch.set_num_threads(arguments.threads)
    machine = this_machine(threads=arguments.threads)
    if arguments.model:
        engine = mmspec.load(arguments.model, dtype="float32", overrides=["decode.attention=model"])
        model, rule = engine.target.model, engine.target.mask_rule
    else:
        model, rule = random_model(arguments.random), None
    targets = {
        "mmspec": Target(model, mask_rule=rule, attention="tree", linears=quick_linears(model)),
        "model": Target(model, mask_rule=rule),
    }
    clock = time.thread_time if arguments.cpu_time else time.perf_counter
    nodes = sorted({1, *arguments.nodes})
    rows = [
        measure(
            targets, context, nodes, shape=arguments.shape, rounds=arguments.rounds, clock=clock
        )
        for context in arguments.contexts
    ]
    table = Table(
        "context", "nodes", "ms", "of node 0 alone", "95%", "model's own, ms", "of node 0",
        "own / mmspec",
    )  # fmt: skip
    for row in rows:
        for count in nodes:
            ratios = row.ratios(("mmspec", count), ("mmspec", 1))
            found = spread(ratios)
            low, high = found.low, found.high
            table.add_row(
                f"{row.context}",
                f"{count}",
                f"{row.median_ms('mmspec', count):.2f}",
                f"[bold]{statistics.median(ratios):.2f}[/]",
                f"{low:.2f}-{high:.2f}",
                f"{row.median_ms('model', count):.2f}",
                f"{statistics.median(row.ratios(('model', count), ('model', 1))):.2f}",
                f"{statistics.median(row.ratios(('model', count), ('mmspec', count))):.2f}",
            )
    report = {
        "model": Path(arguments.model).name if arguments.model else f"random {arguments.random}",
        "shape": arguments.shape,
        "clock": "thread" if arguments.cpu_time else "wall",
        "rows": [asdict(row) for row in rows],
    }
    write_report(arguments.out, machine, report)
    console = Console()
    console.print(table)
    console.print(
        f"{arguments.rounds} rounds, {arguments.threads} threads, load before "
        f"{machine.load_before}; written to {arguments.out}"
    )


if __name__ == "__main__":
    main()
