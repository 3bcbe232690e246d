"""A prompt of 128k tokens: how long it takes, and how much memory beside weights and KV.

    python scripts/long_prompt.py --out build/long_prompt.json
    python scripts/long_prompt.py --model FOLDER --tokens 16384 --keep

The prompt is a real text with a few needles (entries of a ledger) and the question for one of them
(cut to `--tokens`). Memory is the resident set, sampled every few milliseconds, less what it was
before the model was loaded: torch and transformers themselves are no part of it, and told apart.
The bound is 1.3 times the weights and the text's own keys and values. `--keep` leaves the prefix
store on, which keeps a copy of the KV for the next request (up to cache.prefix_bytes).
"""

import argparse
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedTokenizerBase

import mmspec
from mmspec.bench.harness import write_report
from mmspec.bench.machine import this_machine
from mmspec.cli.progress import ReadingBar
from mmspec.requests import Request
from mmspec.state import Prompt
from mmspec.training.tiny.data import needle

BOUND = 1.3
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = 0.005


@dataclass(frozen=True)
class Report:
    """What one long prompt took."""

    model: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str
    context: int
    threads: int
    weight_bytes: int
    kv_bytes: int  # keys and values of prompt and answer, no slot more
    base_bytes: int  # resident before the model was loaded
    loaded_bytes: int  # beyond that, with the model loaded and probed
    prefill_peak_bytes: int  # beyond the base
    decode_peak_bytes: int
    ratio: float  # of the higher peak to weights and KV
    prefill_s: float
    tokens_per_second: float  # of the answer
    chunks: int  # that the progress bar was told of
    keeps_prefix: bool
    answer: str
    torch: str = torch.__version__
    transformers: str = transformers.__version__
    mmspec: str = mmspec.__version__


class Peak:
    """The highest resident set while `watched`."""

    def __init__(self) -> None:
        self.num_bytes = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(_EVERY_S):
                self.num_bytes = max(self.num_bytes, resident_bytes())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.num_bytes = max(self.num_bytes, resident_bytes())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def kv_bytes_per_token(model: transformers.PreTrainedModel) -> int:
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_dim * model.dtype.itemsize


def prompt_of(tokenizer: PreTrainedTokenizerBase, tokens: int, *, seed: int) -> list[int]:
    """The chat prompt of a question about a text, cut at the text's beginning to `tokens`."""
    short = needle(Random(seed), held_out=True, num_chars=4096).prompt_text
    chars = int(tokens * 1.05 * len(short) / len(tokenizer(short)["input_ids"]))
    text = needle(Random(seed), held_out=True, num_chars=chars, num_questions=8).prompt_text
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    head, excess = 2, len(ids) - tokens
    if excess < 0:
        raise SystemExit(f"the text has {len(ids)} tokens: expected at least {tokens}")
    return [*ids[:head], *ids[head + excess :]]


def measure(args: argparse.Namespace, console: Console) -> Report:
    context = args.tokens + args.new
    overrides = [f"model.context={context}"] + ([] if args.keep else ["cache.prefix_bytes=0"])
    before = resident_bytes()
    engine = mmspec.load(args.model, overrides=overrides, drafter=args.drafter)
    loaded = resident_bytes() - before
    model, tokenizer = engine.target.model, engine.tokenizer
    assert tokenizer is not None
    ids = prompt_of(tokenizer, args.tokens, seed=args.seed)
    chunks: list[int] = []
    request = Request(
        Prompt(torch.tensor(ids)), max_new_tokens=args.new, min_new_tokens=args.new, temperature=0.0
    )
    prefill, decode = Peak(), Peak()
    bar = ReadingBar(console)

    def on_prefill(done: int, of: int) -> None:
        chunks.append(done)
        bar.update(done, of)

    begun = time.perf_counter()
    with bar, engine.stream(request, on_prefill=on_prefill) as stream:
        steps = stream.steps()
        with prefill.watched():
            next(steps)
        prefill_s = time.perf_counter() - begun
        with decode.watched():
            for _ in steps:
                pass
    seconds = time.perf_counter() - begun - prefill_s
    result = stream.result
    weights = sum(p.nbytes for p in model.parameters())
    kv = kv_bytes_per_token(model) * (len(ids) + len(result.tokens))
    highest = max(prefill.num_bytes, decode.num_bytes)
    return Report(
        model=Path(args.model).name,
        prompt_tokens=len(ids),
        new_tokens=len(result.tokens),
        finish_reason=result.finish_reason,
        context=context,
        threads=torch.get_num_threads(),
        weight_bytes=weights,
        kv_bytes=kv,
        base_bytes=before,
        loaded_bytes=loaded,
        prefill_peak_bytes=prefill.num_bytes - before,
        decode_peak_bytes=decode.num_bytes - before,
        ratio=(highest - before) / (weights + kv),
        prefill_s=prefill_s,
        tokens_per_second=(len(result.tokens) - 1) / seconds,
        chunks=len(chunks),
        keeps_prefix=args.keep,
        answer=result.text,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-vlm", help="a folder or a bundled model's name")
    parser.add_argument("--tokens", type=int, default=131072, help="of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--drafter", help="in place of the configured one")
    parser.add_argument("--keep", action="store_true", help="with the prefix store")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    report = measure(args, console)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values = {**asdict(report), "highest_bytes": highest, "bound": BOUND}
    if args.out is not None:
        write_report(args.out, this_machine(threads=args.threads), values)
    mib = 2**20
    print(
        f"{report.prompt_tokens} + {report.new_tokens} tokens ({report.finish_reason}) on "
        f"{report.threads} threads: prefill {report.prefill_s:.1f} s in {report.chunks} chunks, "
        f"then {report.tokens_per_second:.1f} tokens/s\n"
        f"weights {report.weight_bytes / mib:.1f} MiB, KV {report.kv_bytes / mib:.1f} MiB; before "
        f"the load {report.base_bytes / mib:.0f} MiB, beyond it: loaded "
        f"{report.loaded_bytes / mib:.0f}, prefill {report.prefill_peak_bytes / mib:.0f}, decode "
        f"{report.decode_peak_bytes / mib:.0f} MiB = {report.ratio:.2f} x weights and KV "
        f"(bound {BOUND})"
    )


if __name__ == "__main__":
    main()
