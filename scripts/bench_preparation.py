"""What work before a first draft costs: short and long answers behind a long prompt.

    python scripts/bench_preparation.py --model FOLDER --texts FOLDER --context 7900

A drafter may have to read the prompt itself, or to copy the cache, before it can propose. Each is
decoded under the automatic controller as it is ("weighed"), and under one that lets every drafter
prepare itself whatever that costs ("eager"), `--tokens` new tokens at a time, beside plain
decoding: one after the other, pair after pair, each pair with another seed. All texts must be the
plain ones. The draft model is the target's own first layers: it costs what such a model costs, and
is hardly ever right. Times are from the prompt's end to the text's. An engine's first request is
told apart: it knows nothing.
"""

import argparse
import copy
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from texts import read_texts, stretches
from transformers import PreTrainedModel

import mmspec
from mmspec.bench.harness import turned, write_report
from mmspec.bench.interval import spread
from mmspec.bench.machine import refuse_if_busy, this_machine
from mmspec.controller import AutoController, AutoStep, Pace
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.state import Preparation, Prompt
from mmspec.target.load import load_model, load_processor, resolve_path
from mmspec.target.self_draft import draft_forward

DRAFT_LAYERS = 6


class EagerController(AutoController):
    """Does not look at what preparing takes."""

    def step(self, paces: Sequence[Pace], context: int) -> "EagerStep":
        return EagerStep(self, paces, context)


class EagerStep(AutoStep):
    def prepares(self, row: int, drafter: str, due: Preparation) -> bool:
        return not self._is_plain


CONTROLLERS = {"weighed": AutoController, "eager": EagerController}


def drafters(model: PreTrainedModel) -> dict[str, Drafter | DrafterForTarget]:
    int8 = draft_forward(weights="int8")
    return {
        "view": CompressedKV(budget=512),
        "int8, all keys": CompressedKV(
            policy="window", budget=2**20, max_share=1.0, forward=int8, max_depth=4
        ),
        "draft model": DraftModel(first_layers(model), top_k=1, max_depth=4),
        "prompt lookup": PromptLookup(),
    }


def first_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the target's first layers, with its own copy of nothing but them."""
    decoder = model.get_decoder()
    layers = decoder.layers
    decoder.layers = layers[:DRAFT_LAYERS]
    try:
        small = copy.deepcopy(model)
    finally:
        decoder.layers = layers
    small.config.num_hidden_layers = DRAFT_LAYERS
    return small


def decode(engine: Engine, prompt: Prompt, tokens: int, seed: int) -> tuple[float, mmspec.Result]:
    """(seconds from the prompt's end to the text's, result)."""
    result = engine.generate(
        prompt, max_new_tokens=tokens, temperature=1.0, top_k=0, seed=seed, ignore_eos=True
    )
    return result.stats.times.decode_s, result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-vlm", help="a folder or a bundled model's name")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--context", type=int, default=7900)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of drafters")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--force", action="store_true", help="measure on a busy machine too")
    args = parser.parse_args()
    machine = this_machine(threads=args.threads)
    if not args.force:
        refuse_if_busy(machine)
    room = args.context + max(args.tokens)
    folder = resolve_path(args.model)
    model, processor = load_model(folder, dtype="float32", context=room), load_processor(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    (ids,) = stretches(tokenizer, read_texts(args.texts), args.context, 1)
    prompt = Prompt(torch.tensor(ids))
    plain = mmspec.load(model, processor, drafter="none")
    torch.set_num_threads(os.cpu_count() or 1)  # for reading alone, which is not measured
    decode(plain, prompt, 2, seed=0)
    torch.set_num_threads(args.threads)
    engines: dict[tuple[str, str], Engine] = {}
    chosen = {k: v for k, v in drafters(model).items() if not args.only or k in args.only}
    for name, drafter in chosen.items():
        for way, controller in CONTROLLERS.items():
            engine = Engine(plain.target, None, [drafter], controller=controller())
            engine.share_cache(plain)
            engines[name, way] = engine
    rows = dict[str, Any]()
    table = Table("drafter", "controller", "tokens", "first", "later, x plain", "prepared", "texts")
    for tokens in args.tokens:
        runs = measured(plain, engines, prompt, tokens, args.pairs)
        for (name, way), own in runs.items():
            later = spread([base / ours for base, ours, _, _ in own[1:]])
            same, ready = sum(o[2] for o in own), sum(o[3] for o in own)
            rows[f"{name}, {way}, {tokens}"] = {
                "first": own[0][0] / own[0][1],
                "later": asdict(later),
                "identical": same,
                "prepared": ready,
                "of": len(own),
            }
            table.add_row(
                name,
                way,
                str(tokens),
                f"{own[0][0] / own[0][1]:.2f}",
                f"{later.median:.2f} ({later.low:.2f}-{later.high:.2f})",
                f"{ready} of {len(own)}",
                f"{same} of {len(own)} identical",
            )
    Console(width=110).print(table)
    if args.out is not None:
        write_report(args.out, machine, {"context": args.context, "rows": rows})


Run = tuple[float, float, bool, bool]  # plain seconds, seconds, same text, was prepared


def measured(
    plain: Engine,
    engines: dict[tuple[str, str], Engine],
    prompt: Prompt,
    tokens: int,
    pairs: int,
) -> dict[tuple[str, str], list[Run]]:
    """Of every engine a run a pair, turned round from pair to pair."""
    runs: dict[tuple[str, str], list[Run]] = {key: [] for key in engines}
    for pair in range(pairs + 1):
        base_s, base = decode(plain, prompt, tokens, seed=pair)
        again_s, _ = decode(plain, prompt, tokens, seed=pair)
        for key in turned(list(engines), pair):
            own_s, own = decode(engines[key], prompt, tokens, seed=pair)
            ready = bool(own.stats.choices.prepared_s)
            runs[key].append(((base_s + again_s) / 2, own_s, own.tokens == base.tokens, ready))
    return runs


if __name__ == "__main__":
    main()
