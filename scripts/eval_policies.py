"""How often the target agrees with itself over a small view: each policy, by budget and context.

    python scripts/eval_policies.py --texts FOLDER --out build/policies.json
    python scripts/eval_policies.py --model FOLDER --texts FOLDER --contexts 4096 16384
    python scripts/eval_policies.py --pages --policies window snapkv visual --contexts 4096 16384

`--texts` are folders of .txt files and of .jsonl files (of a line all its strings are taken); texts
of a folder are joined until they are as long as the context. After the context the model goes on
plainly, for `--tokens` tokens; every few tokens each policy at each budget drafts a chain of
`--depth` tokens from there, and is compared with what came. So all are measured on the same places
of the same text, whose distribution is the model's own. The clock plays no part.

A context beyond what the model was made for is reached by YaRN scaling of its positions (arXiv
2309.00071), and reported so.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from rich.console import Console
from rich.table import Table
from texts import read_texts, stretches
from transformers import PreTrainedModel

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.build_sampler import build_sampler
from mmspec.drafters.compressed_kv import BoundCompressedKV, CompressedKV
from mmspec.drafters.compressed_kv.session import CompressedKVSession
from mmspec.inputs import InputProcessor
from mmspec.params import SamplingParams, merged_generation_config
from mmspec.sampling import Sampler
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.linears import quick_linears
from mmspec.target.load import Processor, load_model, load_processor, resolve_path
from mmspec.training.tiny.data import scan
from mmspec.tree import TokenTree

POLICIES = ("window", "snapkv", "topk_chunks", "window+topk_chunks", "window+snapkv")
PAGES_QUESTION = "Transcribe the page."


@dataclass(frozen=True)
class Row:
    """One policy at one budget over one context, all texts of a folder together."""

    texts: str  # the folder's name
    context: int
    policy: str
    budget: int
    drafted: int  # tokens whose path above was accepted
    accepted: int
    drafts: int
    mean_length: float  # accepted of a draft, of `depth`

    @property
    def rate(self) -> float:
        return self.accepted / self.drafted


class Shadow:
    """A drafter beside a text that goes on without it."""

    def __init__(self, policy: str, budget: int, depth: int) -> None:
        self.policy, self.budget = policy, budget
        self.settings = CompressedKV(
            policy=policy, budget=budget, max_share=1.0, max_depth=depth, min_confidence=0.0
        )
        self.drafter: BoundCompressedKV | None = None
        self.session: CompressedKVSession | None = None
        self.drafts: list[tuple[int, tuple[int, ...]]] = []  # (tokens before it, drafted)

    def propose(self, tokens: Sequence[int], depth: int) -> None:
        assert self.drafter is not None and self.session is not None
        tree = self.drafter.propose_together([self.session], [tokens], depth)[0]
        self.drafts.append((len(tokens), tree.tokens[1:]))

    def accepted(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(accepted, drafted) of each draft that the text reached the end of."""
        for place, draft in self.drafts:
            true = tokens[place : place + len(draft)]
            if len(true) < len(draft):
                continue
            pairs = zip(draft, true, strict=True)
            yield next((i for i, (a, b) in enumerate(pairs) if a != b), len(draft)), len(draft)


def pages_of(
    processor: Processor, model: PreTrainedModel, length: int, count: int
) -> Iterator[Prompt]:
    """`count` chat prompts of some `length` tokens, nearly all of which are pictures of pages."""
    inputs, rng = InputProcessor(processor, model.config), Random("pages")
    each = inputs.encode(PAGES_QUESTION, images=[scan(rng).image]).media[0]
    for _ in range(count):
        number = (length - 64) // (each.stop - each.start)
        pictures = [scan(rng, held_out=True).image for _ in range(number)]
        yield inputs.encode(PAGES_QUESTION, images=pictures)


def run(
    target: Target,
    prompt: Prompt,
    shadows: Sequence[Shadow],
    *,
    num_tokens: int,
    depth: int,
    sampler: Sampler,
) -> list[int]:
    """Continues the text plainly; the shadows draft beside it. Returns prompt and text."""
    log = max(shadow.settings.policy.watched_queries for shadow in shadows)
    cache = target.new_cache(watched_queries=log)
    length = prompt.num_tokens
    row = cache.open(length + num_tokens + 1)
    each = length if prompt.media else 4096  # pictures are encoded by the model's own forward
    for start in range(0, length, each):
        stop = min(start + each, length)
        prefill = target.prefill(prompt, cache, row, start=start, stop=stop)
    tokens, logits = prompt.token_ids.tolist(), prefill.logits
    for shadow in shadows:
        shadow.drafter = shadow.settings.for_target(target, None)
        shadow.session = shadow.drafter.start(prompt, prefill, sampler.guide)
        shadow.drafts = []
    for count in range(num_tokens):
        tokens.append(sampler.choose(logits))
        if count % depth == 0:
            for shadow in shadows:
                shadow.propose(tokens, depth)
        trees = [TokenTree.root(tokens[-1])]
        logits = target.score(trees, cache, [prefill.placement])[0].logits[0]
        cache.commit({row: [0]})
    for shadow in shadows:
        assert shadow.session is not None
        shadow.session.close()
    cache.release()
    return tokens


def sampler_of(
    model: PreTrainedModel, ids: torch.Tensor, tokens: int, temperature: float
) -> Sampler:
    params = SamplingParams(temperature=temperature, top_k=0)
    config = merged_generation_config(
        model, params, tokenizer=None, prompt_length=len(ids), max_new_tokens=tokens
    )
    return build_sampler(model, config, params, ids, seed=1)


def load(path: str, context: int) -> tuple[PreTrainedModel, Processor, bool]:
    """(model, processor, whether its positions are scaled)."""
    folder = resolve_path(path)
    known = transformers.AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    processor = load_processor(folder)
    assert processor is not None
    is_scaled = context > known.max_position_embeddings
    return load_model(folder, dtype="float32", context=context), processor, is_scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-vlm", help="a folder or a bundled model's name")
    parser.add_argument("--texts", nargs="*", type=Path, default=[], help="folders")
    parser.add_argument("--pages", action="store_true", help="also contexts of pictures of pages")
    parser.add_argument("--contexts", nargs="+", type=int, default=[4096])
    parser.add_argument("--budgets", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--count", type=int, default=2, help="stretches of each folder and context")
    parser.add_argument("--tokens", type=int, default=96, help="decoded after each")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    console, rows, scaled = Console(), list[Row](), list[int]()
    for context in args.contexts:
        model, processor, is_scaled = load(args.model, context + args.tokens)
        scaled += [context] if is_scaled else []
        target = Target(model, attention="tree", linears=quick_linears(model))
        tokenizer = getattr(processor, "tokenizer", processor)
        sources: dict[str, Iterator[Prompt]] = {
            folder.name: (
                Prompt(torch.tensor(ids))
                for ids in stretches(tokenizer, read_texts(folder), context, args.count)
            )
            for folder in args.texts
        }
        if args.pages:
            sources["pages"] = pages_of(processor, model, context, args.count)
        for name, prompts in sources.items():
            shadows = [Shadow(p, b, args.depth) for p in args.policies for b in args.budgets]
            found: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(shadows))}
            for prompt in prompts:
                sampler = sampler_of(model, prompt.token_ids, args.tokens, args.temperature)
                text = run(
                    target,
                    prompt,
                    shadows,
                    num_tokens=args.tokens,
                    depth=args.depth,
                    sampler=sampler,
                )
                for index, shadow in enumerate(shadows):
                    found[index] += shadow.accepted(text)
            if not any(found.values()):
                console.print(f"{name}: no text of {context} tokens, left out")
                continue
            for index, shadow in enumerate(shadows):
                rows.append(_row(name, context, shadow, found[index]))
                row = rows[-1]
                console.print(f"{row.texts} {context} {row.policy} {row.budget}: {row.rate:.3f}")
            if args.out is not None:
                _write(args, rows, scaled)
    console.print(table(rows, args.budgets))


def _row(texts: str, context: int, shadow: Shadow, found: Sequence[tuple[int, int]]) -> Row:
    accepted = sum(length for length, _ in found)
    drafted = accepted + sum(length < depth for length, depth in found)
    return Row(
        texts, context, shadow.policy, shadow.budget, drafted, accepted, len(found),
        accepted / len(found),
    )  # fmt: skip


def table(rows: Sequence[Row], budgets: Sequence[int]) -> Table:
    shown = Table(title="share of drafted tokens that are accepted, their path given")
    for column in ("texts", "context", "policy", *map(str, budgets)):
        shown.add_column(column)
    for key in dict.fromkeys((row.texts, row.context, row.policy) for row in rows):
        rates = {r.budget: r.rate for r in rows if (r.texts, r.context, r.policy) == key}
        shown.add_row(*map(str, key), *(f"{rates[b]:.3f}" if b in rates else "" for b in budgets))
    return shown


def _write(args: argparse.Namespace, rows: Sequence[Row], scaled: Sequence[int]) -> None:
    report = {
        "mmspec": mmspec.__version__,
        "model": Path(args.model).name,
        "scaled_contexts": list(scaled),
        "depth": args.depth,
        "tokens": args.tokens,
        "stretches": args.count,
        "temperature": args.temperature,
        "rows": [{**asdict(row), "rate": row.rate} for row in rows],
    }
    write_report(args.out, this_machine(threads=torch.get_num_threads()), report)


if __name__ == "__main__":
    main()
