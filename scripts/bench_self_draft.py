"""What drafting for itself is worth to a model: speed against plain decoding, by context.

    python scripts/bench_self_draft.py --model FOLDER --texts FOLDER --context 7900 --threads 2
    python scripts/bench_self_draft.py --model FOLDER --texts FOLDER --context 7900 \\
        --only plain --method "mine: drafter.name=compressed_kv drafter.compressed_kv.max_depth=4"

Each stretch of a text (.txt and .jsonl files of the folder) is read once; then every method goes on
from there, `--tokens` tokens at `--temperature`, one after the other, pair after pair, each pair
with another seed. All texts must be the plain ones. Times are of decoding alone. A context beyond
what the model was made for is reached by YaRN scaling (arXiv 2309.00071).
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from texts import read_texts, stretches
from transformers import AutoConfig

import mmspec
from mmspec.bench.harness import turned, write_report
from mmspec.bench.interval import spread
from mmspec.bench.machine import refuse_if_busy, this_machine
from mmspec.engine import Engine
from mmspec.state import Prompt
from mmspec.target.load import load_model, load_processor, resolve_path

PLAIN = "plain"
_VIEW = "drafter.name=compressed_kv drafter.compressed_kv.budget=512"
_ALL = "drafter.compressed_kv.policy=window drafter.compressed_kv.max_share=1"
METHODS = {
    PLAIN: "drafter.name=none",
    "view": _VIEW,
    "int8 view": f"{_VIEW} drafter.compressed_kv.weights=int8",
    "int8, all keys": f"{_VIEW} {_ALL} drafter.compressed_kv.budget={2**20} "
    "drafter.compressed_kv.weights=int8",
    "prompt lookup": "drafter.name=prompt_lookup",
    "cascade": f"{_VIEW} drafter.compressed_kv.weights=int8 drafter.name=cascade",
}


def decode(engine: Engine, prompt: Prompt, args: argparse.Namespace, seed: int) -> mmspec.Result:
    return engine.generate(
        prompt,
        max_new_tokens=args.tokens,
        temperature=args.temperature,
        top_k=0,
        seed=seed,
        ignore_eos=True,
    )


def measure(
    engines: dict[str, Engine], prompts: Sequence[Prompt], args: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Of each method, a pair after the other: seconds, tokens and what was done."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    torch.set_num_threads(os.cpu_count() or 1)  # for reading alone, which is not measured
    for prompt in prompts:
        decode(engines[PLAIN], prompt, args, seed=0)
    torch.set_num_threads(args.threads)
    for prompt in prompts:  # each method's first request, which knows nothing
        for engine in engines.values():
            decode(engine, prompt, args, seed=0)
    for pair in range(args.pairs):
        for name in turned(list(engines), pair):
            results = [decode(engines[name], prompt, args, seed=1 + pair) for prompt in prompts]
            runs[name].append(_summed(results))
    return runs


def _summed(results: Sequence[mmspec.Result]) -> dict[str, Any]:
    stats = [result.stats for result in results]
    return {
        "tokens": [list(result.tokens) for result in results],
        "decode_s": sum(one.times.decode_s for one in stats),
        "steps": sum(one.steps for one in stats),
        "asked": sum(sum(one.choices.asked.values()) for one in stats),
        "scored": sum(n * count for one in stats for n, count in one.choices.budgets.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-vlm", help="a folder or a bundled model's name")
    parser.add_argument("--texts", nargs="+", type=Path, required=True)
    parser.add_argument("--context", type=int, default=7900)
    parser.add_argument("--count", type=int, default=1, help="stretches of each folder")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--method", action="append", default=[], help="'NAME: key=value ...'")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = this_machine(threads=args.threads)
    if not args.force:
        refuse_if_busy(machine)
    methods = {PLAIN: METHODS[PLAIN], **{name: METHODS[name] for name in args.only}}
    methods |= {name: words.strip() for name, _, words in (m.partition(":") for m in args.method)}

    folder, room = resolve_path(args.model), args.context + args.tokens
    known = AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    model, processor = load_model(folder, dtype="float32", context=room), load_processor(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    engines: dict[str, Engine] = {}
    for name, words in methods.items():
        engines[name] = mmspec.load(model, processor, overrides=words.split())
        engines[name].share_cache(engines[PLAIN])
    report: dict[str, Any] = {
        "model": Path(args.model).name,
        "context": args.context,
        "scaled": room > known.max_position_embeddings,
        "temperature": args.temperature,
        "new_tokens": args.tokens,
        "pairs": args.pairs,
        "methods": methods,
        "texts": {},
    }
    console = Console()
    for folder in args.texts:
        found = stretches(tokenizer, read_texts(folder), args.context, args.count)
        prompts = [Prompt(torch.tensor(ids)) for ids in found]
        if not prompts:
            console.print(f"{folder.name}: no text of {args.context} tokens, left out")
            continue
        runs = measure(engines, prompts, args)
        rows = report["texts"][folder.name] = _rows(runs)
        console.print(_table(f"{folder.name}, {args.context} tokens", rows))
        if args.out is not None:
            write_report(args.out, machine, report)


def _rows(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    plain, rows = runs[PLAIN], dict[str, dict[str, Any]]()
    for name, own in runs.items():
        pairs = list(zip(plain, own, strict=True))
        tokens = sum(len(text) for run in own for text in run["tokens"])
        steps = sum(run["steps"] for run in own)
        rows[name] = {
            "speed": asdict(spread([a["decode_s"] / b["decode_s"] for a, b in pairs])),
            "seconds": [run["decode_s"] for run in own],
            "tokens_per_step": tokens / steps,
            "asked": sum(run["asked"] for run in own) / steps,
            "scored_per_step": sum(run["scored"] for run in own) / steps,
            "identical": sum(a["tokens"] == b["tokens"] for a, b in pairs),
        }
    return rows


def _table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in ("method", "x plain", "tokens a step", "asked", "scored", "identical"):
        table.add_column(column)
    for name, row in rows.items():
        speed = row["speed"]
        table.add_row(
            name,
            f"{speed['median']:.2f} ({speed['low']:.2f}-{speed['high']:.2f})",
            f"{row['tokens_per_step']:.2f}",
            f"{row['asked']:.0%}",
            f"{row['scored_per_step']:.1f}",
            f"{row['identical']} of {len(row['seconds'])}",
        )
    return table


if __name__ == "__main__":
    main()
