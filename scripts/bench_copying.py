"""Copying tasks: prompt lookup beside our own plain decoding.

    python scripts/bench_copying.py --out build/copying.json
    python scripts/bench_copying.py --model path/to/SmolLM2-135M-Instruct --data path/to/data

On the bundled model: transcribing a receipt with its text layer in the prompt, and quoting from a
document, held-out samples. With `--data` (a folder that has qmsum/ in it) a text model is asked to
repeat passages of meetings. Each pair decodes the same prompt speculatively and plainly, one
after the other in an order that alternates; the ratio is of decoding after the first token. The
interval is a 95% bootstrap over the pairs. The ratio falls short of tokens a step by what a
speculative step costs more than a plain one (a wide score, drafting, choosing), shown beside it.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

import mmspec
from mmspec.engine import Engine
from mmspec.requests import Request, Result


@dataclass(frozen=True)
class Pair:
    """One prompt, decoded both ways."""

    task: str
    new_tokens: int
    tokens_per_step: float
    speculative_s: float  # decoding after the first token
    plain_s: float
    speculative_end_to_end_s: float  # with the prefill
    plain_end_to_end_s: float
    step_cost: float  # seconds of a speculative step / of a plain one
    identical: bool

    @property
    def ratio(self) -> float:
        return self.plain_s / self.speculative_s


def bundled_requests(pairs: int) -> Iterator[tuple[str, Request]]:
    from mmspec.training.tiny.documents import quote
    from mmspec.training.tiny.pictures import receipt

    for seed in range(pairs):
        rng = Random(1000 + seed)
        page = receipt(rng, held_out=True)
        options = {"temperature": 0.0, "max_new_tokens": 400}
        yield "receipt with text layer", Request(page.prompt_text, images=page.image, **options)
        yield "quote, 1k characters", Request(quote(rng, True, 1000).prompt_text, **options)
        yield "quote, 4k characters", Request(quote(rng, True, 4000).prompt_text, **options)


def meeting_requests(data: Path, pairs: int) -> Iterator[tuple[str, Request]]:
    """Speakers' turns of a meeting, to be repeated word by word."""
    meetings = [
        json.loads(line)
        for line in (data / "qmsum" / "product_test.jsonl").read_text().splitlines()[:pairs]
    ]
    for meeting in meetings:
        turns = [f"{t['speaker']}: {t['content']}" for t in meeting["meeting_transcripts"]]
        text = "\n".join(turns)[:4000]
        prompt = f"Repeat this transcript word by word.\n\n{text}"
        yield "repeat a meeting", Request(prompt, temperature=0.0, max_new_tokens=200)


def measure(engine: Engine, task: str, request: Request, *, plain_first: bool) -> Pair:
    order = (False, True) if plain_first else (True, False)
    runs = {
        speculate: engine.generate(request, speculate=speculate, reuse=False) for speculate in order
    }
    speculative, plain = runs[True], runs[False]
    return Pair(
        task=task,
        new_tokens=len(plain.tokens),
        tokens_per_step=speculative.stats.tokens_per_step,
        speculative_s=speculative.stats.times.decode_s,
        plain_s=plain.stats.times.decode_s,
        speculative_end_to_end_s=_whole(speculative),
        plain_end_to_end_s=_whole(plain),
        step_cost=_step_s(speculative) / _step_s(plain),
        identical=speculative.tokens == plain.tokens,
    )


def _whole(result: Result) -> float:
    return result.stats.times.decode_s + result.stats.times.prefill_s


def _step_s(result: Result) -> float:
    return result.stats.times.decode_s / max(result.stats.steps, 1)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(np.array(ratios), (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-vlm")
    parser.add_argument("--data", type=Path, help="folder with qmsum/")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/copying.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = mmspec.load(arguments.model, dtype="float32")
    requests = list(
        meeting_requests(arguments.data, arguments.pairs)
        if arguments.data
        else bundled_requests(arguments.pairs)
    )
    load = os.getloadavg()[0]
    measure(engine, *requests[0], plain_first=True)  # the first run pays for what it loads
    pairs = [
        measure(engine, task, request, plain_first=bool(index % 2))
        for index, (task, request) in enumerate(requests)
    ]
    table = Table(
        "task", "pairs", "tokens", "tokens a step", "cost of a step", "x plain", "95%", "end to end"
    )
    for task in dict.fromkeys(pair.task for pair in pairs):
        own = [pair for pair in pairs if pair.task == task and pair.new_tokens > 1]
        low, high = interval([pair.ratio for pair in own])
        whole = [p.plain_end_to_end_s / p.speculative_end_to_end_s for p in own]
        table.add_row(
            task,
            f"{len(own)}",
            f"{sum(pair.new_tokens for pair in own)}",
            f"{statistics.median(p.tokens_per_step for p in own):.2f}",
            f"{statistics.median(p.step_cost for p in own):.2f}",
            f"[bold]{statistics.median(p.ratio for p in own):.2f}[/]",
            f"{low:.2f}-{high:.2f}",
            f"{statistics.median(whole):.2f}",
        )
    identical = sum(pair.identical for pair in pairs)
    report = {
        "model": Path(arguments.model).name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "load_before": load,
        "identical": identical,
        "pairs": [asdict(pair) for pair in pairs],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    console = Console()
    console.print(table)
    console.print(
        f"{identical} of {len(pairs)} texts identical; {arguments.threads} threads, load before "
        f"{load:.2f}; written to {arguments.out}"
    )


if __name__ == "__main__":
    main()
